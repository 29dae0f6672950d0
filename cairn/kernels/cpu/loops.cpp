// Planning and walking of elementwise loops.
#include "cairn/kernels/cpu/loops.h"

#include <algorithm>

#include "cairn/kernels/cpu/narrow.h"
#include "cairn/tensor/parallel.h"

namespace cairn::kernels::cpu {

// What widened_row needs to know of the loop behind it.
struct Widening {
  Row row;  // of f32
  int count;
  DType dtypes[kMaxOperands];
};

namespace {

// Dimensions in walking order, outermost first; steps in bytes.
struct Plan {
  int rank = 0;
  int64_t size[kMaxRank];
  int64_t step[kMaxRank][kMaxOperands];
};

std::byte* bytes_of(const Tensor& t) { return static_cast<std::byte*>(t.raw_data()); }

// Step of `t` along the output's dimension d: 0 where t is broadcast.
int64_t step_of(const Tensor& t, size_t d, size_t out_rank) {
  const size_t missing = out_rank - t.shape().size();
  if (d < missing || t.shape()[d - missing] == 1) return 0;
  return t.strides()[d - missing] * item_size(t.dtype());
}

void append_dimension(Plan& plan, int count, int64_t size, const int64_t* step) {
  const int last = plan.rank - 1;
  bool merges = last >= 0;
  for (int k = 0; merges && k < count; ++k) merges = plan.step[last][k] == step[k] * size;
  const int at = merges ? last : plan.rank++;
  plan.size[at] = merges ? plan.size[at] * size : size;
  std::copy_n(step, count, plan.step[at]);
}

Plan make_plan(const Tensor* const* tensors, int count) {
  const Tensor& out = *tensors[0];
  const size_t rank = out.shape().size();
  size_t order[kMaxRank];
  size_t used = 0;
  for (size_t d = 0; d < rank; ++d) {
    if (out.shape()[d] == 1) continue;
    // Insertion sort, stable: rarely more than four dimensions, mostly in order already.
    size_t at = used++;
    for (; at > 0 && out.strides()[order[at - 1]] < out.strides()[d]; --at)
      order[at] = order[at - 1];
    order[at] = d;
  }
  Plan plan;
  for (size_t i = 0; i < used; ++i) {
    int64_t step[kMaxOperands] = {};
    for (int k = 0; k < count; ++k)
      if (tensors[k]) step[k] = step_of(*tensors[k], order[i], rank);
    append_dimension(plan, count, out.shape()[order[i]], step);
  }
  if (plan.rank == 0) {
    plan.rank = 1;
    plan.size[0] = 1;
    for (int k = 0; k < count; ++k)
      plan.step[0][k] = tensors[k] ? item_size(tensors[k]->dtype()) : 0;
  }
  return plan;
}

// Runs the f32 row over pieces of the halves' values, which stay in the first-level cache.
void widened_row(std::byte* const* at, const int64_t* step, int64_t n, const RowContext& context) {
  constexpr int64_t kPiece = 512;
  const Widening& w = *context.widening;
  alignas(64) float buffer[kMaxOperands][kPiece];
  for (int64_t i = 0; i < n; i += kPiece) {
    const int64_t m = std::min(kPiece, n - i);
    std::byte* here[kMaxOperands];
    int64_t stride[kMaxOperands];
    for (int k = 0; k < w.count; ++k) {
      stride[k] = step[k];
      here[k] = step[k] == kNumber ? at[k] : at[k] + i * step[k];
      if (step[k] == kNumber || !is_half(w.dtypes[k])) continue;
      const bool same = k > 0 && step[k] == 0;  // an operand that is broadcast
      if (k > 0 || context.add) widen(w.dtypes[k], here[k], step[k], same ? 1 : m, buffer[k]);
      here[k] = reinterpret_cast<std::byte*>(buffer[k]);
      stride[k] = same ? 0 : static_cast<int64_t>(sizeof(float));
    }
    w.row(here, stride, m, context);
    if (is_half(w.dtypes[0])) narrow(w.dtypes[0], buffer[0], m, at[0] + i * step[0], step[0]);
  }
}

}  // namespace

Loop& Loop::add_tensor(const Tensor& in) {
  tensors_[count_++] = &in;
  return *this;
}

Loop& Loop::add_operand(const Operand& operand, DType dtype) {
  if (operand.tensor) return add_tensor(*operand.tensor);
  Number& number = numbers_[count_];
  switch (dtype) {
    case DType::f64:
      number.f64 = operand.floating;
      break;
    case DType::f32:
    case DType::bf16:
    case DType::f16:
      number.f32 = static_cast<float>(operand.floating);
      break;
    case DType::i64:
      number.i64 = operand.integer;
      break;
    case DType::i32:
      number.i32 = static_cast<int32_t>(operand.integer);
      break;
    case DType::u8:
      number.u8 = static_cast<uint8_t>(operand.integer);
      break;
    case DType::boolean:
      number.boolean = operand.integer != 0;
      break;
  }
  tensors_[count_++] = nullptr;
  return *this;
}

// One flat loop where every tensor is laid out as the output or has one element.
bool Loop::run_flat(Row row, const RowContext& context, int64_t grain) const {
  std::byte* at[kMaxOperands] = {};
  int64_t step[kMaxOperands] = {};
  const int64_t n = out_.numel();
  for (int k = 0; k < count_; ++k) {
    if (!tensors_[k]) {
      at[k] = reinterpret_cast<std::byte*>(const_cast<Number*>(&numbers_[k]));
      step[k] = kNumber;
      continue;
    }
    const Tensor& t = *tensors_[k];
    at[k] = bytes_of(t);
    const bool alike = k == 0 || (t.shape() == out_.shape() && t.strides() == out_.strides());
    if (!alike && t.numel() != 1) return false;
    step[k] = alike ? item_size(t.dtype()) : 0;
  }
  if (!out_.is_dense()) return false;
  if (n <= grain) {
    row(at, step, n, context);
    return true;
  }
  parallel_for(0, n, grain, [&](int64_t lo, int64_t hi) {
    std::byte* here[kMaxOperands];
    for (int k = 0; k < count_; ++k) here[k] = at[k] + (step[k] == kNumber ? 0 : step[k] * lo);
    row(here, step, hi - lo, context);
  });
  return true;
}

void Loop::run(Row row, const RowContext& context, int64_t grain) const {
  if (out_.numel() == 0 || run_flat(row, context, grain)) return;
  const Plan plan = make_plan(tensors_, count_);
  const int inner = plan.rank - 1;
  const int64_t width = plan.size[inner];
  int64_t rows = 1;
  for (int d = 0; d < inner; ++d) rows *= plan.size[d];
  // Long rows are cut into pieces, so that few of them keep all threads busy too.
  const int64_t pieces = std::max<int64_t>(1, width / std::max<int64_t>(grain, 1));
  const int64_t piece = (width + pieces - 1) / pieces;

  int64_t step[kMaxOperands];
  for (int k = 0; k < count_; ++k) step[k] = tensors_[k] ? plan.step[inner][k] : kNumber;
  const int64_t items_per_thread = std::max<int64_t>(1, grain / std::max<int64_t>(piece, 1));
  parallel_for(0, rows * pieces, items_per_thread, [&](int64_t lo, int64_t hi) {
    // An odometer over the outer dimensions, set once and then advanced.
    int64_t index[kMaxRank] = {};
    std::byte* at[kMaxOperands];
    for (int k = 0; k < count_; ++k)
      at[k] = tensors_[k] ? bytes_of(*tensors_[k])
                          : reinterpret_cast<std::byte*>(const_cast<Number*>(&numbers_[k]));
    int64_t r = lo / pieces;
    for (int d = inner - 1; d >= 0; --d) {
      index[d] = r % plan.size[d];
      r /= plan.size[d];
      for (int k = 0; k < count_; ++k) at[k] += index[d] * plan.step[d][k];
    }
    int64_t part = lo % pieces;
    for (int64_t item = lo; item < hi; ++item) {
      const int64_t from = part * piece;
      std::byte* here[kMaxOperands];
      for (int k = 0; k < count_; ++k) here[k] = at[k] + (step[k] == kNumber ? 0 : step[k] * from);
      row(here, step, std::min(piece, width - from), context);
      if (++part < pieces) continue;
      part = 0;
      for (int d = inner - 1; d >= 0; --d) {
        for (int k = 0; k < count_; ++k) at[k] += plan.step[d][k];
        if (++index[d] < plan.size[d]) break;
        for (int k = 0; k < count_; ++k) at[k] -= plan.size[d] * plan.step[d][k];
        index[d] = 0;
      }
    }
  });
}

void Loop::run_as(DType dtype, Row row, const RowContext& context, int64_t grain) const {
  if (!is_half(dtype)) return run(row, context, grain);
  Widening widening{row, count_, {}};
  for (int k = 0; k < count_; ++k)
    if (tensors_[k]) widening.dtypes[k] = tensors_[k]->dtype();
  run(widened_row, {context.a, context.b, context.add, &widening}, grain);
}

}  // namespace cairn::kernels::cpu
