// IDX files, the format of MNIST and Fashion-MNIST, gzipped or not.
// Invariant: a tensor comes back only when header, size, end of file and gzip checksum all agree.
#pragma once

#include <cstdint>
#include <string>

#include "cairn/tensor/tensor.h"

namespace cairn::data {

struct IdxOptions {
  int64_t rank = 0;                      // dimensions wanted; 0 takes any from 1 to 8
  int64_t max_bytes = int64_t{1} << 30;  // most decompressed bytes of content
  std::string name = {};                 // stands for the file in errors; empty: its path
};

struct IdxFile {
  Tensor data;         // u8, the file's dimensions
  uint32_t crc32 = 0;  // of all decompressed bytes, header included
};

// Reads a file of unsigned bytes. Format: two zero bytes, type byte 8, number of dimensions, each
// dimension as big-endian 32 bits, the content row-major. Throws Error "read_idx: …" naming the
// file, what was wanted and what came.
IdxFile read_idx_file(const std::string& path, const IdxOptions& options = {});
Tensor read_idx(const std::string& path, const IdxOptions& options = {});

}  // namespace cairn::data
