// Folders, mirrors and checks of IDX sets. Invariant: see idx_set.h.
#include "cairn/data/idx_set.h"

#include <pwd.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "cairn/data/download.h"
#include "cairn/data/idx.h"
#include "cairn/tensor/error.h"

namespace cairn::data {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kGzipSlack = int64_t{1} << 20;  // a .gz may exceed its content by a little

// "" where the variable is not set.
std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

std::string hex(uint32_t value) {
  std::string out = "0x00000000";
  for (size_t i = 9; i >= 2; --i, value >>= 4) out[i] = "0123456789abcdef"[value & 15];
  return out;
}

// The plain or compressed file in the folder; "" where there is neither.
std::string find_file(const std::string& folder, const IdxSetFile& file) {
  for (const char* ending : {"", ".gz"}) {
    const fs::path path = fs::path(folder) / (file.name + ending);
    std::error_code error;
    if (fs::exists(path, error)) return path.string();
  }
  return "";
}

// `name` stands for the file in errors.
Tensor read_checked(const IdxSet& set, const IdxSetFile& want, const std::string& path,
                    const std::string& name) {
  const std::string shown = cat("'", name, "'");
  const IdxFile file = read_idx_file(path, {.rank = static_cast<int64_t>(want.shape.size()),
                                            .max_bytes = numel_of(want.shape),
                                            .name = name});
  check(file.data.shape() == want.shape, set.op, ": dimensions of ", shown, " must be ", want.shape,
        ", got ", file.data.shape());
  check(!want.not_crc32 || file.crc32 != *want.not_crc32, set.op, ": ", shown, " must hold ",
        set.title, ", got Fashion-MNIST");
  check(!want.crc32 || file.crc32 == *want.crc32, set.op, ": CRC-32 of the content of ", shown,
        " must be ", hex(want.crc32.value_or(0)), ", got ", hex(file.crc32),
        "; delete the file to load it again");
  return file.data;
}

std::vector<std::string> mirrors_of(const IdxSet& set, const IdxSetOptions& options) {
  if (!options.mirror.empty()) return {options.mirror};
  const std::string from_environment = environment("CAIRN_DATA_MIRROR");
  if (!from_environment.empty()) return {from_environment};
  return set.mirrors;
}

void fetch_file(const IdxSet& set, const IdxSetFile& file, const std::string& folder,
                const IdxSetOptions& options) {
  const std::string name = file.name + ".gz";
  std::string failures;
  for (const std::string& mirror : mirrors_of(set, options)) {
    const std::string url = mirror + (mirror.ends_with('/') ? "" : "/") + name;
    try {
      download(url, (fs::path(folder) / name).string(),
               [&](const std::string& temporary) { read_checked(set, file, temporary, url); },
               {.connect_timeout_s = options.connect_timeout_s,
                .stall_timeout_s = options.stall_timeout_s,
                .max_bytes = numel_of(file.shape) + kGzipSlack});
      return;
    } catch (const Error& error) {
      failures += failures.empty() ? "" : "; ";
      failures += error.what();
    }
  }
  throw CommError(cat(set.op, ": download of ", name, " must succeed, got ", failures));
}

[[noreturn]] void fail_missing(const IdxSet& set, const std::vector<std::string>& folders) {
  std::string places;
  for (const std::string& folder : folders) places += (places.empty() ? "" : ", ") + folder;
  const std::string package = set.package.empty() ? "" : " or install the package " + set.package;
  fail(set.op, ": files ", set.images.name, " and ", set.labels.name,
       " (plain or .gz) must be in one of ", places, ", got none; set download = true", package);
}

// The folders that are looked in, in order. The first one is downloaded into.
std::vector<std::string> folders_of(const IdxSet& set, const IdxSetOptions& options) {
  const std::string root = options.root.empty() ? default_root() : options.root;
  std::vector<std::string> folders{(fs::path(root) / set.folder / "raw").string(), root};
  folders.insert(folders.end(), set.system_folders.begin(), set.system_folders.end());
  return folders;
}

// The first with both files; "" where there is none.
std::string complete_folder(const IdxSet& set, const std::vector<std::string>& folders) {
  for (const std::string& folder : folders)
    if (!find_file(folder, set.images).empty() && !find_file(folder, set.labels).empty())
      return folder;
  return "";
}

}  // namespace

void fetch_idx_set(const IdxSet& set, const IdxSetOptions& options) {
  const std::vector<std::string> folders = folders_of(set, options);
  if (!complete_folder(set, folders).empty()) return;
  for (const IdxSetFile* file : {&set.images, &set.labels})
    if (find_file(folders[0], *file).empty()) fetch_file(set, *file, folders[0], options);
}

IdxSetData load_idx_set(const IdxSet& set, const IdxSetOptions& options) {
  if (options.download) fetch_idx_set(set, options);
  const std::vector<std::string> folders = folders_of(set, options);
  const std::string folder = complete_folder(set, folders);
  if (folder.empty() && !options.download) fail_missing(set, folders);
  check(!folder.empty(), set.op, ": downloaded files must stay in ", folders[0],
        ", got one removed meanwhile");
  const auto read = [&](const IdxSetFile& file) {
    const std::string path = find_file(folder, file);
    return read_checked(set, file, path, path);
  };
  return {read(set.images), read(set.labels)};
}

std::string default_root() {
  if (const std::string root = environment("CAIRN_DATA_ROOT"); !root.empty()) return root;
  // The XDG base directory specification has relative paths ignored.
  if (const std::string cache = environment("XDG_CACHE_HOME"); cache.starts_with('/'))
    return cache + "/cairn/data";
  std::string home = environment("HOME");
  if (home.empty()) {
    const passwd* user = getpwuid(getuid());
    home = user != nullptr ? user->pw_dir : "";
  }
  check(!home.empty(), "default_root: CAIRN_DATA_ROOT or HOME must be set, got neither");
  return home + "/.cache/cairn/data";
}

}  // namespace cairn::data
