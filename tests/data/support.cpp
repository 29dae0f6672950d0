// See support.h.
#include "tests/data/support.h"

#include <zlib.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

namespace cairn::test {

namespace fs = std::filesystem;

TempFolder::TempFolder() {
  std::string name = (fs::temp_directory_path() / "cairn-data-XXXXXX").string();
  check(mkdtemp(name.data()) != nullptr, "temp_folder: folder must be writable, got ", name);
  path_ = name;
}

TempFolder::~TempFolder() {
  std::error_code error;
  fs::remove_all(path_, error);
}

std::vector<std::string> TempFolder::files() const {
  std::vector<std::string> out;
  for (const auto& entry : fs::recursive_directory_iterator(path_))
    if (!entry.is_directory()) out.push_back(fs::relative(entry.path(), path_).string());
  std::sort(out.begin(), out.end());
  return out;
}

SetEnvironment::SetEnvironment(const char* name, const char* value) : name_(name) {
  const char* old = std::getenv(name);
  had_ = old != nullptr;
  if (had_) old_ = old;
  value != nullptr ? setenv(name, value, 1) : unsetenv(name);
}

SetEnvironment::~SetEnvironment() { had_ ? setenv(name_, old_.c_str(), 1) : unsetenv(name_); }

std::string write_file(const std::string& path, const Bytes& bytes) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  check(file.good(), "write_file: file must be writable, got ", path);
  return path;
}

Bytes read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  check(file.good(), "read_file: file must be readable, got ", path);
  return Bytes(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

Bytes gzip(const Bytes& bytes) {
  z_stream stream{};
  check(deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK, "gzip: zlib");
  Bytes out(deflateBound(&stream, bytes.size()) + 64);
  stream.next_in = const_cast<Bytef*>(bytes.data());
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = out.data();
  stream.avail_out = static_cast<uInt>(out.size());
  check(deflate(&stream, Z_FINISH) == Z_STREAM_END, "gzip: zlib");
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

Bytes idx_bytes(const std::vector<uint32_t>& dims, int modulus) {
  Bytes out{0, 0, 8, static_cast<uint8_t>(dims.size())};
  size_t count = 1;
  for (const uint32_t dim : dims) {
    for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<uint8_t>(dim >> shift));
    count *= dim;
  }
  for (size_t i = 0; i < count; ++i)
    out.push_back(static_cast<uint8_t>(i % static_cast<size_t>(modulus)));
  return out;
}

uint32_t crc_of(const Bytes& bytes) {
  return static_cast<uint32_t>(crc32_z(0, bytes.data(), bytes.size()));
}

bool same_bits(const Tensor& a, const Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() == b.defined();
  return a.is_contiguous() && b.is_contiguous() && a.shape() == b.shape() &&
         a.dtype() == b.dtype() &&
         (a.numel() == 0 ||
          std::memcmp(a.raw_data(), b.raw_data(), static_cast<size_t>(a.nbytes())) == 0);
}

bool same_bits(const Batch& a, const Batch& b) {
  return same_bits(a.input, b.input) && same_bits(a.target, b.target);
}

}  // namespace cairn::test
