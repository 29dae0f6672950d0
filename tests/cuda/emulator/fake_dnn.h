// cuDNN, emulated: what tests can see of it and set.
#pragma once

#include "cairn/kernels/cuda/dnn_api.h"
#include "tests/cuda/emulator/fakes.h"

namespace cairn::emulator {

// The engines of the emulated library, in the order in which heuristics recommend them.
constexpr int64_t kHugeEngine = 30;     // asks for more workspace than anybody gives
constexpr int64_t kChanceEngine = 20;   // adds in an order of chance, rounds to TF32
constexpr int64_t kTensorEngine = 10;   // rounds to TF32; has a knob
constexpr int64_t kExactEngine = 11;    // does neither
constexpr int64_t kFallbackEngine = 5;  // known to the fallback heuristics alone
constexpr int64_t kNormEngine = 0;      // the only one for batch norms, and for nothing else

struct DnnLog {
  int64_t heuristics = 0;
  int64_t executions = 0;  // of convolutions
  int64_t norms = 0;       // of batch norms
  int64_t last_engine = -1;
  int64_t live = 0;  // descriptors
};
DnnLog& dnn_log();
const kernels::cuda::DnnApi& fake_dnn();
void set_dnn_version(size_t version);
// No engine can add to its result.
void refuse_adding(bool on);
// Plans can be made and fail when they run: all, or those of one engine (-1: of none).
void refuse_running(bool on);
void refuse_running_engine(int64_t engine);
// Heuristics recommend nothing, or only in fallback mode.
enum class Known { all, fallback, nothing };
void set_known_engines(Known known);

}  // namespace cairn::emulator
