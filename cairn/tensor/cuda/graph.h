// What a thread that captures needs to tell kernels, and refuse.
#pragma once

#include <cstdint>

#include "cairn/tensor/capture.h"
#include "cairn/tensor/device.h"

namespace cairn::cuda {

// Whether this thread captures the device's work now.
bool capturing(Device device);
// Throws `op: a captured step must …` where this thread captures; `what` ends the sentence.
void refuse_in_capture(Device device, const char* op, const char* what);
// While capturing: where kernels find the number of random blocks that replays have used so far, to
// be added to the offset they were called with. Null otherwise.
const int64_t* random_shift(Device device);

extern const CaptureBackend kCaptureBackend;

}  // namespace cairn::cuda
