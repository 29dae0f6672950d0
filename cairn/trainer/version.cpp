// The library's version, which CMake knows.
#include "cairn/trainer/version.h"

namespace cairn {

std::string_view version() { return CAIRN_VERSION; }

}  // namespace cairn
