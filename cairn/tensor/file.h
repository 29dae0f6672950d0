// Whole-file reading and writing that survives short reads, interrupts and full disks.
// Invariant: a file written here appears under its name complete and synced, or not at all.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "cairn/tensor/error.h"

namespace cairn {

// A regular file open for reading. Errors read `op: 'path' …`.
class ReadFile {
 public:
  // Throws Error where the file cannot be opened or is not a regular file.
  ReadFile(std::string path, std::string op);
  ~ReadFile();
  ReadFile(const ReadFile&) = delete;
  ReadFile& operator=(const ReadFile&) = delete;

  // Bytes at the time of opening.
  int64_t size() const { return size_; }
  const std::string& path() const { return path_; }
  // Fills `bytes` bytes from `offset`; throws Error when the file ends before (it shrank
  // meanwhile).
  void read(void* to, int64_t bytes, int64_t offset) const;

 private:
  std::string path_;
  std::string op_;
  int file_ = -1;
  int64_t size_ = 0;
};

// A file being written under a temporary name in the same folder. Without commit() the destructor
// removes it and a file that had the name before stays as it was.
class AtomicFile {
 public:
  AtomicFile(std::string path, std::string op);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* from, int64_t bytes);
  void write(std::string_view text) { write(text.data(), static_cast<int64_t>(text.size())); }
  // Syncs the bytes, renames, and syncs the folder, so that the name survives a power loss.
  void commit();

 private:
  [[noreturn]] void fail_with_errno() const;

  std::string path_;
  std::string op_;
  std::string temporary_;
  int file_ = -1;
};

}  // namespace cairn
