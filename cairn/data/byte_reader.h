// Bytes of a file, decompressed on the fly where the file is gzip (told by its first two bytes).
// Invariant: never more than 64 KiB of the file are held, so a small file that decompresses to a
// huge one costs only what the caller asks for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace cairn::data {

class ByteReader {
 public:
  // `op` begins every error's text and `name`, quoted by the caller, is the file in it. Throws
  // Error unless `path` is a regular file that can be read.
  ByteReader(const std::string& path, const char* op, const std::string& name);
  ~ByteReader();
  ByteReader(const ByteReader&) = delete;
  ByteReader& operator=(const ByteReader&) = delete;

  // Fills `out`; returns how many bytes there were, fewer than `count` only at the end. Throws
  // Error on a truncated or corrupt gzip stream, a wrong CRC, or bytes behind the stream.
  size_t read(void* out, size_t count);
  // True when no byte is left. Reads the gzip trailer, so the stream's own CRC has been checked
  // then.
  bool at_end();
  // CRC-32 of the (decompressed) bytes that read() returned.
  uint32_t crc32() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cairn::data
