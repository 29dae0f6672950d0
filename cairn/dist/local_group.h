// The group of one process: every collective is a copy.
#pragma once

#include <memory>

#include "cairn/dist/process_group.h"

namespace cairn::dist {

// options.size must be 1, else Error.
std::shared_ptr<ProcessGroup> local_group(GroupOptions options = {});

}  // namespace cairn::dist
