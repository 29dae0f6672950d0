// The vendors' libraries, emulated: what tests can see of them and set.
// Invariant: a fake refuses whatever the library's documentation forbids, with a sentence in
// complaint(), and computes in its stream's turn.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "cairn/kernels/cuda/blas.h"

namespace cairn::emulator {

// The sentence behind the last refusal of a fake library; empty after it was asked for.
std::string complaint();
void complain(const std::string& text);

struct BlasLog {
  int64_t heuristics = 0;
  int64_t products = 0;
  int64_t batched = 0;  // of those
  int64_t with_epilogue = 0;
  std::map<cublasLtEpilogue_t, int64_t> epilogues;  // how often each
  int64_t fast_tf32 = 0;
  int64_t longest_k = 0;
};
BlasLog& blas_log();
const kernels::cuda::BlasApi& fake_blas();
// From now on no algorithm knows an epilogue; false: all are known again.
void refuse_epilogues(bool on);
// Nor this one.
void refuse_epilogue(cublasLtEpilogue_t one);

}  // namespace cairn::emulator
