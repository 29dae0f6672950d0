// Reading plain and gzip files through one 64 KiB buffer.
// Invariant: see byte_reader.h.
#include "cairn/data/byte_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>

#include "cairn/tensor/error.h"

namespace cairn::data {
namespace {

constexpr int kGzipOnly = 15 + 16;  // zlib's window bits: the largest window, gzip header wanted
constexpr std::byte kGzipMagic0{0x1f};
constexpr std::byte kGzipMagic1{0x8b};

}  // namespace

struct ByteReader::Impl {
  Impl(const std::string& path, const char* op_name, const std::string& shown)
      : op(op_name), name(shown) {
    // Without O_NONBLOCK opening a pipe would wait for its writer.
    fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    check(fd >= 0, op, ": ", name, " must be readable, got '", std::strerror(errno), "'");
    struct stat status {};
    if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
      ::close(fd);
      fail(op, ": ", name, " must be a regular file, got ",
           S_ISDIR(status.st_mode) ? "a folder" : "something else");
    }
  }

  ~Impl() {
    if (gzip) inflateEnd(&stream);
    ::close(fd);
  }

  // Looks at the first bytes; apart from the constructor so that the destructor runs on an error.
  void begin() {
    refill();
    if (available < 2 || buffer[0] != kGzipMagic0 || buffer[1] != kGzipMagic1) return;
    check(inflateInit2(&stream, kGzipOnly) == Z_OK, op, ": zlib must start, got no memory");
    gzip = true;
  }

  // Fills the empty buffer; false at the end of the file.
  bool refill() {
    position = 0;
    available = 0;
    ssize_t got = 0;
    do {
      got = ::read(fd, buffer.data(), buffer.size());
    } while (got < 0 && errno == EINTR);
    check(got >= 0, op, ": ", name, " must be readable, got '", std::strerror(errno), "'");
    available = static_cast<size_t>(got);
    return got > 0;
  }

  size_t read_plain(std::byte* out, size_t count) {
    size_t done = 0;
    while (done < count && (available > 0 || refill())) {
      const size_t n = std::min(count - done, available);
      std::memcpy(out + done, buffer.data() + position, n);
      position += n;
      available -= n;
      done += n;
    }
    return done;
  }

  size_t read_gzip(std::byte* out, size_t count) {
    size_t done = 0;
    while (done < count && !ended) {
      check(available > 0 || refill(), op, ": ", name,
            " must be a complete gzip file, got its end after ", total + done,
            " decompressed bytes");
      const auto wanted = static_cast<uInt>(std::min<size_t>(count - done, UINT_MAX));
      stream.next_in = reinterpret_cast<Bytef*>(buffer.data() + position);
      stream.avail_in = static_cast<uInt>(available);
      stream.next_out = reinterpret_cast<Bytef*>(out + done);
      stream.avail_out = wanted;
      const int result = inflate(&stream, Z_NO_FLUSH);
      position += available - stream.avail_in;
      available = stream.avail_in;
      done += wanted - stream.avail_out;
      if (result == Z_STREAM_END)
        end_member();
      else
        check(result == Z_OK || result == Z_BUF_ERROR, op, ": ", name, " must be valid gzip, got '",
              stream.msg != nullptr ? stream.msg : "bad data", "'");
    }
    return done;
  }

  // A gzip file may be several streams one behind another (RFC 1952, section 2.2).
  void end_member() {
    if (available == 0 && !refill()) {
      ended = true;
      return;
    }
    check(buffer[position] == kGzipMagic0, op, ": ", name,
          " must end with its gzip stream, got bytes behind it");
    inflateReset(&stream);
  }

  const char* op;
  std::string name;
  int fd = -1;
  bool gzip = false;
  bool ended = false;  // the last gzip stream is read
  z_stream stream{};
  std::array<std::byte, size_t{1} << 16> buffer;
  size_t position = 0;
  size_t available = 0;
  size_t total = 0;
  uint32_t crc = 0;
};

ByteReader::ByteReader(const std::string& path, const char* op, const std::string& name)
    : impl_(std::make_unique<Impl>(path, op, name)) {
  impl_->begin();
}

ByteReader::~ByteReader() = default;

size_t ByteReader::read(void* out, size_t count) {
  auto* bytes = static_cast<std::byte*>(out);
  const size_t got = impl_->gzip ? impl_->read_gzip(bytes, count) : impl_->read_plain(bytes, count);
  impl_->total += got;
  impl_->crc = static_cast<uint32_t>(crc32_z(impl_->crc, static_cast<const Bytef*>(out), got));
  return got;
}

bool ByteReader::at_end() {
  std::byte probe{};
  return (impl_->gzip ? impl_->read_gzip(&probe, 1) : impl_->read_plain(&probe, 1)) == 0;
}

uint32_t ByteReader::crc32() const { return impl_->crc; }

}  // namespace cairn::data
