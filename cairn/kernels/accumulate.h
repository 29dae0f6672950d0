// Handing a gradient over: dst (+)= src, summed where dst was broadcast to src's shape.
#pragma once

#include "cairn/kernels/slot.h"

namespace cairn::kernels {

// dst.tensor's shape broadcasts to src's; any strides, any dtypes. Sums in Accumulate of the type,
// one order for every thread count.
extern Slot<void(const Dst& dst, In src)> accumulate_to;

}  // namespace cairn::kernels
