// ReportFolder: a lock on the folder tells that its launcher lives, also where processes have other
// numbers, as in another container with the same temporary folder.
#include "cairn/dist/report_folder.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <filesystem>

#include "cairn/tensor/error.h"

namespace cairn::dist {
namespace {

namespace fs = std::filesystem;

const std::string kStart = "cairn-launch-";
// A younger one may be about to get its lock.
constexpr time_t kYoung = 60;

Socket open_folder(const std::string& path) {
  return Socket(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
}

// Of this user, and not young.
bool is_old(const Socket& folder) {
  struct stat is {};
  return ::fstat(folder.fd(), &is) == 0 && is.st_uid == ::geteuid() &&
         ::time(nullptr) - is.st_mtime > kYoung;
}

// What cannot be removed stays.
void remove_left_ones(const fs::path& parent) {
  std::error_code ignored;
  fs::directory_iterator at(parent, ignored);
  for (; !ignored && at != fs::directory_iterator(); at.increment(ignored)) {
    if (at->path().filename().string().rfind(kStart, 0) != 0) continue;
    const Socket folder = open_folder(at->path().string());
    if (!folder || !is_old(folder) || ::flock(folder.fd(), LOCK_EX | LOCK_NB) != 0) continue;
    std::error_code stays;
    fs::remove_all(at->path(), stays);
  }
}

}  // namespace

ReportFolder::ReportFolder() {
  const char* given = ::getenv("TMPDIR");
  const std::string parent = given != nullptr && *given != '\0' ? given : "/tmp";
  remove_left_ones(parent);
  path_ = cat(parent, "/", kStart, "XXXXXX");
  if (::mkdtemp(path_.data()) == nullptr)
    fail("launch: TMPDIR must be a folder that can be written, got '", parent,
         "': ", std::strerror(errno));
  lock_ = open_folder(path_);
  if (lock_) ::flock(lock_.fd(), LOCK_EX | LOCK_NB);
}

ReportFolder::~ReportFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::string ReportFolder::file(int rank) const { return cat(path_, "/", rank); }

}  // namespace cairn::dist
