// POSIX files: pread with exact counts, and temporary name + fsync + rename.
#include "cairn/tensor/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <system_error>
#include <utility>

namespace cairn {
namespace {

constexpr int64_t kPiece = int64_t{1} << 30;  // one system call moves at most 2 GiB - 4 KiB

std::string reason(int code) { return std::generic_category().message(code); }

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

ReadFile::ReadFile(std::string path, std::string op) : path_(std::move(path)), op_(std::move(op)) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer.
  file_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file_ < 0) fail(op_, ": '", path_, "' cannot be opened: ", reason(errno));
  struct stat status;
  const bool known = ::fstat(file_, &status) == 0;
  if (!known || !S_ISREG(status.st_mode)) {
    ::close(file_);
    fail(op_, ": '", path_, "' must be a regular file");
  }
  size_ = status.st_size;
}

ReadFile::~ReadFile() { ::close(file_); }

void ReadFile::read(void* to, int64_t bytes, int64_t offset) const {
  auto* at = static_cast<char*>(to);
  const int64_t wanted = bytes;
  while (bytes > 0) {
    const ssize_t got = ::pread(file_, at, static_cast<size_t>(std::min(bytes, kPiece)),
                                static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(op_, ": '", path_, "' cannot be read: ", reason(errno));
    if (got == 0)
      fail(op_, ": '", path_, "' must keep its size while it is read, got ", wanted - bytes, " of ",
           wanted, " bytes");
    at += got;
    bytes -= got;
    offset += got;
  }
}

AtomicFile::AtomicFile(std::string path, std::string op)
    : path_(std::move(path)), op_(std::move(op)) {
  static std::atomic<uint64_t> counter{0};
  temporary_ = cat(path_, ".tmp-", ::getpid(), "-", counter.fetch_add(1));
  file_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (file_ < 0) {
    const int code = errno;
    temporary_.clear();
    fail(op_, ": '", path_, "' cannot be written: ", reason(code));
  }
}

AtomicFile::~AtomicFile() {
  if (file_ >= 0) ::close(file_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::fail_with_errno() const {
  fail(op_, ": '", path_, "' cannot be written: ", reason(errno));
}

void AtomicFile::write(const void* from, int64_t bytes) {
  const auto* at = static_cast<const char*>(from);
  while (bytes > 0) {
    const ssize_t put = ::write(file_, at, static_cast<size_t>(std::min(bytes, kPiece)));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail_with_errno();
    at += put;
    bytes -= put;
  }
}

void AtomicFile::commit() {
  if (::fsync(file_) != 0) fail_with_errno();
  const int closed = ::close(std::exchange(file_, -1));
  if (closed != 0) fail_with_errno();
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail_with_errno();
  temporary_.clear();
  const int folder = ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return;  // a folder that may be entered but not read cannot be synced
  ::fsync(folder);
  ::close(folder);
}

}  // namespace cairn
