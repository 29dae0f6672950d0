// ReportFolder: where the workers of a run leave their errors, in the system's temporary folder.
// Invariant: it is this process's while it lives, however it dies; what a dead one left there, the
// next one of the same user removes.
#pragma once

#include <string>

#include "cairn/dist/socket.h"

namespace cairn::dist {

class ReportFolder {
 public:
  // Error where none can be made.
  ReportFolder();
  ~ReportFolder();
  ReportFolder(const ReportFolder&) = delete;
  ReportFolder& operator=(const ReportFolder&) = delete;

  std::string file(int rank) const;

 private:
  std::string path_;
  Socket lock_;  // the system lets go of it when this process ends
};

}  // namespace cairn::dist
