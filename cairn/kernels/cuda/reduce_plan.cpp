// Planning of reductions.
#include "cairn/kernels/cuda/reduce_plan.h"

#include <bit>

namespace cairn::kernels::cuda {
namespace {

struct Dim {
  int64_t size, in, out0, out1;
};

struct Dims {
  Dim dims[kMaxRank];
  int count = 0;
  void add(const Dim& d) { dims[count++] = d; }
  // Innermost in the input first.
  void sort() {
    std::stable_sort(dims, dims + count, [](const Dim& a, const Dim& b) { return a.in < b.in; });
  }
};

int power_of_two(int64_t n, int most) {
  return static_cast<int>(std::bit_ceil(static_cast<uint64_t>(std::clamp<int64_t>(n, 1, most))));
}

bool starts_aligned(const Tensor& x, const Dims& kept, const Dims& reduced, int vector) {
  if (reinterpret_cast<uintptr_t>(x.raw_data()) % 16 != 0) return false;
  for (int i = 0; i < kept.count; ++i)
    if (kept.dims[i].in % vector != 0) return false;
  for (int i = 1; i < reduced.count; ++i)
    if (reduced.dims[i].in % vector != 0) return false;
  return true;
}

// Chunks of `vector` elements where the reduced part lies in whole ones.
void plan_chunks(ReducePlan& plan, const Tensor& x, const Dims& kept, const Dims& reduced,
                 int vector) {
  for (int i = 0; i < reduced.count; ++i)
    plan.reduced.add(reduced.dims[i].size, {reduced.dims[i].in});
  if (plan.columns || plan.reduced.rank == 0 || plan.reduced.stride[0][0] != 1) return;
  const int64_t run = plan.reduced.size[0].value;
  const bool whole = run % vector == 0;
  if (run < vector || (!whole && plan.reduced.rank > 1)) return;
  if (!starts_aligned(x, kept, reduced, vector)) return;
  Axes<1> chunks;
  chunks.add(run / vector, {vector});
  for (int d = 1; d < plan.reduced.rank; ++d)
    chunks.add(plan.reduced.size[d].value, {plan.reduced.stride[d][0]});
  plan.reduced = chunks;
  plan.tail = run % vector;
  plan.each = vector;
}

void plan_threads(ReducePlan& plan) {
  constexpr int64_t kBlocks = 528;  // four for each multiprocessor of a large card
  const int64_t chunks = plan.reduced.count;
  const int64_t results = plan.kept.count;
  if (plan.columns) {
    const int widest = power_of_two(results, 32);
    plan.lanes = power_of_two(chunks / 4, kReduceThreads / widest);
  } else if (chunks <= 128) {
    plan.lanes = power_of_two(chunks / 4, 32);
  } else {
    plan.lanes = results >= 4 * kBlocks && chunks <= 4096 ? 32 : kReduceThreads;
  }
  const int64_t blocks = (results + plan.items() - 1) / plan.items();
  const int64_t useful = chunks / (plan.lanes * int64_t{8});  // 8 chunks or more for each thread
  const int64_t splits = std::clamp<int64_t>(useful, 1, std::max<int64_t>(1, kBlocks / blocks));
  plan.per_split = (chunks + splits - 1) / splits;
  plan.splits = chunks == 0 ? 1 : static_cast<int>((chunks + plan.per_split - 1) / plan.per_split);
}

}  // namespace

ReducePlan plan_reduce(const Tensor& y0, const Tensor& y1, const Tensor& x, int vector) {
  Dims kept;
  Dims reduced;
  const size_t missing = x.shape().size() - y0.shape().size();
  for (size_t d = 0; d < x.shape().size(); ++d) {
    const int64_t size = x.shape()[d];
    if (size == 1) continue;
    if (d < missing || y0.shape()[d - missing] != size)
      reduced.add({size, x.strides()[d], 0, 0});
    else
      kept.add({size, x.strides()[d], y0.strides()[d - missing],
                y1.defined() ? y1.strides()[d - missing] : 0});
  }
  kept.sort();
  reduced.sort();
  ReducePlan plan;
  for (int i = 0; i < kept.count; ++i) {
    const Dim& d = kept.dims[i];
    plan.kept.add(d.size, {d.in, d.out0, d.out1});
  }
  plan.columns = plan.kept.rank > 0 && plan.kept.size[0].value >= 4 &&
                 (reduced.count == 0 || kept.dims[0].in < reduced.dims[0].in);
  plan_chunks(plan, x, kept, reduced, vector);
  plan_threads(plan);
  return plan;
}

}  // namespace cairn::kernels::cuda
