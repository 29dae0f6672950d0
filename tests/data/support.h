// Helpers of the data tests: folders that vanish, files made byte by byte, error texts, comparison.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cairn/data/batch.h"
#include "cairn/tensor/error.h"
#include "cairn/tensor/tensor.h"

namespace cairn::test {

using Bytes = std::vector<uint8_t>;

// A new empty folder, removed with all in it at the end.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  // Names of all files below, sorted, relative to the folder.
  std::vector<std::string> files() const;

 private:
  std::string path_;
};

// Sets an environment variable (null: removes it) until the end of the scope.
class SetEnvironment {
 public:
  SetEnvironment(const char* name, const char* value);
  ~SetEnvironment();
  SetEnvironment(const SetEnvironment&) = delete;
  SetEnvironment& operator=(const SetEnvironment&) = delete;

 private:
  const char* name_;
  bool had_;
  std::string old_;
};

// Makes missing folders. Returns the path.
std::string write_file(const std::string& path, const Bytes& bytes);
Bytes read_file(const std::string& path);
Bytes gzip(const Bytes& bytes);
// An IDX file of u8 with the given dimensions and content i % 251 (labels: i % modulus).
Bytes idx_bytes(const std::vector<uint32_t>& dims, int modulus = 251);
uint32_t crc_of(const Bytes& bytes);

// Equal shape, dtype and bits; both contiguous.
bool same_bits(const Tensor& a, const Tensor& b);
bool same_bits(const Batch& a, const Batch& b);

// The text of the Error that body() throws; "no error" when it throws none.
template <class Body>
std::string error_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace cairn::test
