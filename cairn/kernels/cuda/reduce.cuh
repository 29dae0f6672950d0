// One reduction kernel for every operation and shape.
// Invariant: the order in which elements are combined depends on the plan alone.
//
// An Op has Element and Acc (trivial), and on the device: `Acc identity()`, `add(Acc&, Element, i)`
// with i the element's number along a single reduced dimension, `combine(Acc&, Acc)`, and
// `write(out0, out1, Acc)` with the offsets of the result in the outputs.
#pragma once

#include "cairn/kernels/cuda/reduce_plan.h"
#include "cairn/tensor/cuda/device.cuh"
#include "cairn/tensor/factory.h"

namespace cairn::kernels::cuda {

// A thread's share of one line; `line` is its first element.
template <class Op, int kEach>
__device__ __forceinline__ typename Op::Acc reduce_share(const Op& op,
                                                         const typename Op::Element* line,
                                                         const ReducePlan& plan, int lane) {
  using Chunk = cairn::cuda::Vector<typename Op::Element, kEach>;
  constexpr int kFlying = 4;  // loads under way at a time
  typename Op::Acc part[kFlying];
  for (int u = 0; u < kFlying; ++u) part[u] = op.identity();
  const auto load = [&](int64_t chunk) {
    return *reinterpret_cast<const Chunk*>(line + plan.reduced.offsets(chunk).at[0]);
  };
  const auto add = [&](typename Op::Acc& to, const Chunk& x, int64_t chunk) {
#pragma unroll
    for (int v = 0; v < kEach; ++v) op.add(to, x.value[v], chunk * kEach + v);
  };
  const int64_t first = static_cast<int64_t>(blockIdx.y) * plan.per_split;
  int64_t last = first + plan.per_split;
  if (last > plan.reduced.count) last = plan.reduced.count;
  const int64_t lanes = plan.lanes;
  int64_t c = first + lane;
  for (; c + (kFlying - 1) * lanes < last; c += kFlying * lanes) {
    Chunk x[kFlying];
#pragma unroll
    for (int u = 0; u < kFlying; ++u) x[u] = load(c + u * lanes);
#pragma unroll
    for (int u = 0; u < kFlying; ++u) add(part[u], x[u], c + u * lanes);
  }
  for (; c < last; c += lanes) add(part[0], load(c), c);
  if (kEach > 1 && last == plan.reduced.count)
    for (int64_t i = lane; i < plan.tail; i += lanes)
      op.add(part[1], line[last * kEach + i], last * kEach + i);
  op.combine(part[0], part[1]);
  op.combine(part[2], part[3]);
  op.combine(part[0], part[2]);
  return part[0];
}

// Combines over the lanes of each item; lane 0 has the result. All threads must call it.
template <class Op>
__device__ __forceinline__ void reduce_lanes(const Op& op, typename Op::Acc& acc, int lanes,
                                             int apart, int lane) {
  __shared__ typename Op::Acc shared[kReduceThreads];
  if (lanes == 1) return;
  shared[threadIdx.x] = acc;
  for (int step = lanes / 2; step > 0; step /= 2) {
    __syncthreads();
    if (lane < step) {
      op.combine(acc, shared[static_cast<int>(threadIdx.x) + step * apart]);
      shared[threadIdx.x] = acc;
    }
  }
}

template <class Op, int kEach>
__global__ void __launch_bounds__(kReduceThreads)
    reduce_kernel(Op op, const typename Op::Element* in, ReducePlan plan,
                  typename Op::Acc* partials) {
  const int t = static_cast<int>(threadIdx.x);
  const int items = kReduceThreads / plan.lanes;
  const int lane = plan.columns ? t / items : t % plan.lanes;
  const int in_block = plan.columns ? t % items : t / plan.lanes;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * items + in_block;
  const bool mine = item < plan.kept.count;
  const auto at = plan.kept.offsets(mine ? item : 0);
  typename Op::Acc acc = op.identity();
  if (mine) acc = reduce_share<Op, kEach>(op, in + at.at[0], plan, lane);
  reduce_lanes(op, acc, plan.lanes, plan.columns ? items : 1, lane);
  if (!mine || lane != 0) return;
  if (plan.splits > 1)
    partials[item * plan.splits + blockIdx.y] = acc;
  else
    op.write(at.at[1], at.at[2], acc);
}

// Combines what several blocks have of each result, a warp's lanes for each.
template <class Op>
__global__ void __launch_bounds__(kReduceThreads)
    reduce_finish(Op op, ReducePlan plan, const typename Op::Acc* partials) {
  const int lane = static_cast<int>(threadIdx.x) % cairn::cuda::kWarp;
  const int64_t item = cairn::cuda::global_thread() / cairn::cuda::kWarp;
  const bool mine = item < plan.kept.count;
  typename Op::Acc acc = op.identity();
  for (int s = lane; mine && s < plan.splits; s += cairn::cuda::kWarp)
    op.combine(acc, partials[item * plan.splits + s]);
  reduce_lanes(op, acc, cairn::cuda::kWarp, 1, lane);
  if (!mine || lane != 0) return;
  const auto at = plan.kept.offsets(item);
  op.write(at.at[1], at.at[2], acc);
}

// Reduces x to y0's shape; y1 is a second output of that shape, or undefined. What is written and
// where is op's business.
template <class Op>
void reduce(const char* name, const Op& op, const Tensor& y0, const Tensor& y1, const Tensor& x) {
  using Element = typename Op::Element;
  using Acc = typename Op::Acc;
  using cairn::cuda::launch;
  if (y0.numel() == 0) return;
  constexpr int kVector = cairn::cuda::kVector<Element>;
  const ReducePlan plan = plan_reduce(y0, y1, x, kVector);
  const Device device = x.device();
  const int64_t results = plan.kept.count;
  const auto* const in = static_cast<const Element*>(x.raw_data());
  Tensor scratch;  // the stream's next user of this memory comes after both kernels
  if (plan.splits > 1)
    scratch =
        empty({results * plan.splits * static_cast<int64_t>(sizeof(Acc))}, {DType::u8, device});
  Acc* const partials = plan.splits > 1 ? static_cast<Acc*>(scratch.raw_data()) : nullptr;
  const int64_t blocks = (results + plan.items() - 1) / plan.items();
  const cairn::cuda::Grid grid{
      dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(plan.splits)),
      dim3(kReduceThreads)};
  if (plan.each > 1)
    launch(device, name, reduce_kernel<Op, kVector>, grid, op, in, plan, partials);
  else
    launch(device, name, reduce_kernel<Op, 1>, grid, op, in, plan, partials);
  if (plan.splits > 1)
    launch(device, "reduce_finish", reduce_finish<Op>,
           cairn::cuda::grid_for(results * cairn::cuda::kWarp, kReduceThreads), op, plan, partials);
}

// fn.operator()<T>() with the type that holds an element; bool counts as a byte of 0 or 1.
template <class Fn>
void dispatch_bytes(DType dtype, Fn&& fn) {
  dispatch(dtype, [&]<class T>() {
    if constexpr (std::is_same_v<T, bool>)
      fn.template operator()<uint8_t>();
    else
      fn.template operator()<T>();
  });
}

}  // namespace cairn::kernels::cuda
