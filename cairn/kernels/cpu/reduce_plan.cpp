// Planning of reductions.
#include "cairn/kernels/cpu/reduce_plan.h"

#include <utility>

namespace cairn::kernels::cpu {
namespace {

struct Dim {
  int64_t size, in, out;
};

// Sorted by the input's strides, outermost first, neighbours merged.
Axes make_axes(Dim* dims, int count) {
  // Insertion sort: stable, and no memory of its own.
  for (int i = 1; i < count; ++i)
    for (int k = i; k > 0 && dims[k - 1].in < dims[k].in; --k) std::swap(dims[k - 1], dims[k]);
  Axes axes;
  for (int i = 0; i < count; ++i) {
    const int last = axes.rank - 1;
    axes.count *= dims[i].size;
    if (last >= 0 && axes.in[last] == dims[i].in * dims[i].size &&
        axes.out[last] == dims[i].out * dims[i].size) {
      axes.size[last] *= dims[i].size;
      axes.in[last] = dims[i].in;
      axes.out[last] = dims[i].out;
    } else {
      axes.size[axes.rank] = dims[i].size;
      axes.in[axes.rank] = dims[i].in;
      axes.out[axes.rank] = dims[i].out;
      ++axes.rank;
    }
  }
  return axes;
}

// Takes the innermost dimension away; {1, 1, 1} where there is none.
Dim pop_inner(Axes& axes) {
  if (axes.rank == 0) return {1, 1, 1};
  --axes.rank;
  const Dim d{axes.size[axes.rank], axes.in[axes.rank], axes.out[axes.rank]};
  axes.count = 1;
  for (int i = 0; i < axes.rank; ++i) axes.count *= axes.size[i];
  return d;
}

}  // namespace

ReducePlan plan_reduction(const Tensor& out, const Tensor& in) {
  Dim kept[kMaxRank];
  Dim reduced[kMaxRank];
  int kept_count = 0;
  int reduced_count = 0;
  const size_t missing = in.shape().size() - out.shape().size();
  for (size_t d = 0; d < in.shape().size(); ++d) {
    const int64_t size = in.shape()[d];
    if (size == 1) continue;
    if (d < missing || out.shape()[d - missing] != size)
      reduced[reduced_count++] = {size, in.strides()[d], 0};
    else
      kept[kept_count++] = {size, in.strides()[d], out.strides()[d - missing]};
  }
  ReducePlan plan;
  plan.kept = make_axes(kept, kept_count);
  plan.reduced = make_axes(reduced, reduced_count);
  const Axes& k = plan.kept;
  const Axes& r = plan.reduced;
  // Columns: the memory's innermost dimension is kept. A few columns of long runs are better off
  // with strided runs than with loops of length 2.
  plan.columns =
      k.rank > 0 && r.rank > 0 && k.in[k.rank - 1] < r.in[r.rank - 1] && k.size[k.rank - 1] >= 4;
  const Dim run = pop_inner(plan.reduced);
  plan.run = run.size;
  plan.run_step = run.in;
  if (plan.columns) {
    const Dim columns = pop_inner(plan.kept);
    plan.width = columns.size;
    plan.width_in = columns.in;
    plan.width_out = columns.out;
  }
  return plan;
}

}  // namespace cairn::kernels::cpu
