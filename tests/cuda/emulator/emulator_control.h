// What tests may ask of the emulated GPU and turn on it.
#pragma once

#include <driver_types.h>

#include <cstdint>
#include <vector>

namespace cairn::emulator {

int64_t runtime_waits();  // calls that block the host until a device is done
int64_t launches();       // kernels, copies and graphs that ran
// The next call of this function of the runtime fails like that.
void fail_next(const char* call, cudaError_t error);
// Order in which the threads of a block take turns; a missing barrier shows in one of them.
void set_backwards(bool on);
// What the next pairs of events are apart, in milliseconds; after those, 1.
void set_elapsed(const std::vector<float>& next);
// Lets every stream do the first pieces of its work, `count` at most, as a device that is slow.
void advance(int64_t count);
// Device blocks whose guard bytes have been written to so far.
int64_t guard_violations();

}  // namespace cairn::emulator
