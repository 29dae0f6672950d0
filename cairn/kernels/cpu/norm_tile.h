// The passes of batch normalisation over one piece of the rows x channels matrix.
// Invariant: a pass reads and writes its own rows and channels alone, rows in order.
#pragma once

#include <cstdint>

#include "cairn/tensor/dtype.h"

namespace cairn::kernels::cpu {

// Rows that stay in the first-level cache between two passes over them; also the longest sum kept
// in the vectors' own type.
constexpr int64_t kNormRows = 64;
// Channels handled together: four vectors of 16 floats.
constexpr int64_t kNormChannels = 64;

// y = (x - mean) factor + offset; dx = factor dy - slope (x - mean) - shift.
enum NormCoef { kMean, kFactor, kOffset, kSlope, kShift, kNormCoefs };

// How a backward pass knows where relu cut: not at all, from the output, or from the input.
enum class NormMask { none, output, input };

// One piece of the matrix: rows [0, rows) of the pointers, channels [0, channels) of them.
template <class T>
struct NormPiece {
  using Acc = Accumulate<T>;
  int64_t rows, channels, ld;
  const T* x = nullptr;
  const T* dy = nullptr;
  const T* y = nullptr;         // forward output, for the relu mask; may be null
  const T* residual = nullptr;  // may be null
  T* out = nullptr;             // y or dx
  T* dresidual = nullptr;       // may be null
  bool add = false;             // to what `out` (or, in reduce, dresidual) writes
  bool relu = false;
  const Acc* coef[kNormCoefs] = {};  // per channel, see NormCoef
  double* sum[2] = {};               // per channel: results of a reducing pass
};

template <class T>
struct NormFns {
  void (*stats)(const NormPiece<T>&);
  void (*apply)(const NormPiece<T>&);
  void (*reduce)(const NormPiece<T>&);
  void (*dx)(const NormPiece<T>&);
};

// The passes of the CPU target chosen at run time, for every floating dtype.
template <class T>
NormFns<T> best_norm_fns();

}  // namespace cairn::kernels::cpu
