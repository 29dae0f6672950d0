// The process-wide caching allocator of host memory.
#pragma once

#include "cairn/tensor/allocator.h"

namespace cairn {

Allocator* cpu_allocator();

// For tests: while on, every block of this process's host memory is handed out filled with 0xFF
// bytes (NaN in every floating dtype) and fenced by guard bytes on both sides, and is never reused.
void set_allocator_checks(bool on);
// Blocks freed so far whose guard bytes had been written to.
int64_t guard_violations();

}  // namespace cairn
