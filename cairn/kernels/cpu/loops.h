// The walk of an elementwise kernel over its operands: dimensions are sorted by the output's
// strides and merged, then a row function is called for runs of the innermost one. Invariant: rows
// partition the output; which rows a thread gets never changes a result.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cairn/kernels/elementwise.h"
#include "cairn/tensor/tensor.h"

namespace cairn::kernels::cpu {

constexpr int kMaxOperands = 4;  // the output and up to three inputs

// Step of a number in place of a tensor: the pointer leads to a value of the compute type.
constexpr int64_t kNumber = INT64_MIN;

struct Widening;

// What a row function needs beside pointers.
struct RowContext {
  double a = 0;
  double b = 0;
  bool add = false;  // add to the output instead of overwriting it
  const Widening* widening = nullptr;
};

// n elements: at[0] is the output, at[1 …] the inputs; step[k] bytes apart (0, kNumber: always the
// same one).
using Row = void (*)(std::byte* const* at, const int64_t* step, int64_t n,
                     const RowContext& context);

class Loop {
 public:
  explicit Loop(const Tensor& out) : out_(out) { add_tensor(out); }
  // `in` broadcasts to the output.
  Loop& add_tensor(const Tensor& in);
  // The number of `operand`, in the compute type of `dtype`; or its tensor.
  Loop& add_operand(const Operand& operand, DType dtype);
  // grain: elements that are worth a thread.
  void run(Row row, const RowContext& context, int64_t grain) const;
  // As run, for the row of f32 where `dtype` is a half: halves go through buffers of f32, so that
  // no kernel needs rows of its own for them.
  void run_as(DType dtype, Row row, const RowContext& context, int64_t grain) const;

 private:
  bool run_flat(Row row, const RowContext& context, int64_t grain) const;

  const Tensor& out_;
  int count_ = 0;
  const Tensor* tensors_[kMaxOperands] = {};
  union Number {
    double f64;
    float f32;
    int64_t i64;
    int32_t i32;
    uint8_t u8;
    bool boolean;
  } numbers_[kMaxOperands];
};

}  // namespace cairn::kernels::cpu
