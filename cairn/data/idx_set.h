// Finding, loading and checking an image set of two IDX files (MNIST and its kin).
// Invariant: what is returned has the expected shapes and, where it is known, the expected
// checksum.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cairn/tensor/tensor.h"

namespace cairn::data {

struct IdxSetFile {
  std::string name;  // without ".gz"
  Shape shape;
  std::optional<uint32_t> crc32 = {};      // of the uncompressed file
  std::optional<uint32_t> not_crc32 = {};  // of a file of another set with the same name and shape
};

struct IdxSet {
  const char* op;      // begins the errors
  const char* title;   // names the set in them
  std::string folder;  // <root>/<folder>/raw is looked in first and downloaded into
  std::vector<std::string> system_folders;  // looked in after root
  std::string package;                      // that installs a system folder; empty: none
  std::vector<std::string> mirrors;         // URLs of folders, tried in order
  IdxSetFile images;
  IdxSetFile labels;
};

struct IdxSetOptions {
  std::string root;  // empty: default_root()
  bool download = false;
  std::string mirror = {};  // in place of the set's mirrors; empty: $CAIRN_DATA_MIRROR, if set
  double connect_timeout_s = 10;
  double stall_timeout_s = 30;
};

struct IdxSetData {
  Tensor images;  // u8
  Tensor labels;  // u8
};

// Takes the first folder with both files, plain or .gz: <root>/<folder>/raw, <root>, the system's.
// A bad file in it is an error, not a reason to look further. Where no folder has them, downloads
// what is missing from <root>/<folder>/raw, if asked to; else the Error lists the folders.
IdxSetData load_idx_set(const IdxSet& set, const IdxSetOptions& options);

// The download alone: what is missing from <root>/<folder>/raw, where no folder has both files.
void fetch_idx_set(const IdxSet& set, const IdxSetOptions& options);

// Where datasets are kept: $CAIRN_DATA_ROOT, else $XDG_CACHE_HOME/cairn/data, else
// ~/.cache/cairn/data.
std::string default_root();

}  // namespace cairn::data
