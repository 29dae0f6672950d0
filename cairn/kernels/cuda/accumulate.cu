// accumulate_to: handing a gradient over to its tensor, summed where that was broadcast.
// Invariant: the order of a sum follows from the shapes and strides alone; it is formed in f64 if
// either side is f64, in i64 for integers, else in f32. Sums over long stretches are made of
// partial sums, which lie in a tensor of their own, from the caching allocator.
#include "cairn/kernels/accumulate.h"

#include <bit>

#include "cairn/kernels/cuda/loops.cuh"
#include "cairn/tensor/factory.h"
#include "cairn/tensor/raw.h"

namespace cairn::kernels::cuda {
namespace {

template <class C, class G>
struct Converted {
  __device__ __forceinline__ C operator()(Compute<G> g) const { return static_cast<C>(g); }
};

constexpr int kThreads = 256;
constexpr int kUnroll = 4;  // loads in flight for a thread

// How a block's threads share its sums: 2^log_outs outputs side by side, the rest along the sums.
struct Layout {
  int log_outs = 0;
  bool outputs_first = false;  // neighbouring threads have neighbouring outputs
  int64_t chunk = 0;           // elements of a sum for one block; blockIdx.y counts chunks
};

// Sums in the accumulating type to `partials` [chunks, outputs] or, where that is null, to out.
template <class D, class C, class Acc>
struct Target {
  D* out;
  Acc* partials;
  bool add;

  __device__ __forceinline__ void store(int64_t at, Acc sum) const {
    const C total = static_cast<C>(sum);
    const C result = add ? static_cast<C>(widen(out[at])) + total : total;
    out[at] = narrow<D>(static_cast<Compute<D>>(result));
  }
};

// kept walks over the outputs (offsets in src and out), summed over one output's elements.
template <class D, class G, class C, class Acc>
__global__ void __launch_bounds__(kThreads)
    sum_to(Target<D, C, Acc> target, const G* src, Walk<2> kept, Walk<1> summed, Layout layout) {
  __shared__ Acc sums[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int outs = 1 << layout.log_outs;
  const int depth = kThreads >> layout.log_outs;
  const int local = layout.outputs_first ? thread & (outs - 1) : thread / depth;
  const int lane = layout.outputs_first ? thread >> layout.log_outs : thread & (depth - 1);
  const int64_t o = static_cast<int64_t>(blockIdx.x) * outs + local;
  Acc part[kUnroll] = {};
  if (o < kept.numel) {
    const G* const from = src + kept.offsets(static_cast<uint32_t>(o)).at[0];
    const auto value = [&](int64_t r) {
      return static_cast<Acc>(widen(from[summed.offsets(static_cast<uint32_t>(r)).at[0]]));
    };
    int64_t r = blockIdx.y * layout.chunk + lane;
    const int64_t last = (blockIdx.y + 1) * layout.chunk;
    const int64_t end = last < summed.numel ? last : summed.numel;
    for (; r + (kUnroll - 1) * depth < end; r += kUnroll * depth) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) part[u] += value(r + u * depth);
    }
    for (; r < end; r += depth) part[0] += value(r);
  }
  sums[thread] = (part[0] + part[1]) + (part[2] + part[3]);
  const int unit = layout.outputs_first ? outs : 1;
  for (int step = depth / 2; step > 0; step /= 2) {
    __syncthreads();
    if (lane < step) sums[thread] += sums[thread + step * unit];
  }
  if (lane != 0 || o >= kept.numel) return;
  if (target.partials != nullptr)
    target.partials[blockIdx.y * kept.numel + o] = sums[thread];
  else
    target.store(kept.offsets(static_cast<uint32_t>(o)).at[1], sums[thread]);
}

// A warp an output adds the partial sums.
template <class D, class C, class Acc>
__global__ void finish_sums(Target<D, C, Acc> target, int64_t chunks, Walk<2> kept) {
  using cairn::cuda::kWarp;
  const int64_t o = cairn::cuda::global_thread() / kWarp;
  const auto lane = static_cast<int64_t>(threadIdx.x % kWarp);
  Acc sum{};
  if (o < kept.numel)
    for (int64_t i = lane; i < chunks; i += kWarp) sum += target.partials[i * kept.numel + o];
  sum = cairn::cuda::warp_reduce(sum, cairn::cuda::Plus());
  if (o < kept.numel && lane == 0) target.store(kept.offsets(static_cast<uint32_t>(o)).at[1], sum);
}

// The plan of a sum of `summed` elements for each of `kept` outputs.
Layout layout_of(const Walk<2>& kept, const Walk<1>& summed) {
  const auto power = [](int64_t n, int64_t most) {
    return static_cast<int>(std::bit_ceil(static_cast<uint64_t>(std::min(n, most))));
  };
  Layout layout;
  layout.outputs_first =
      kept.rank > 0 && (summed.rank == 0 || kept.stride[0][0] < summed.stride[0][0]);
  int depth = power(summed.numel, kThreads);
  if (layout.outputs_first) depth = std::min(depth, kThreads / power(kept.numel, 32));
  const int outs = kThreads / depth;
  layout.log_outs = std::countr_zero(static_cast<unsigned>(outs));
  // Enough blocks for the largest GPU; each has a few rounds of loads to do.
  constexpr int64_t kBlocks = 528;
  const int64_t blocks = (kept.numel + outs - 1) / outs;
  const int64_t most = summed.numel / (int64_t{4} * kUnroll * depth);
  const int64_t chunks = std::clamp<int64_t>(kBlocks / blocks, 1, std::max<int64_t>(most, 1));
  layout.chunk = (summed.numel + chunks - 1) / chunks;
  return layout;
}

template <class D, class G>
void launch_sums(const Dst& dst, In src, bool add, const Walk<2>& kept, const Walk<1>& summed) {
  constexpr bool kWide = std::is_same_v<D, double> && kFloating<G>;
  using Acc = std::conditional_t<kWide, double, Accumulate<G>>;
  using C = std::conditional_t<std::is_integral_v<Acc>, double, Acc>;
  const Device device = src.device();
  const Layout layout = layout_of(kept, summed);
  const int64_t outs = int64_t{1} << layout.log_outs;
  const int64_t chunks = (summed.numel + layout.chunk - 1) / layout.chunk;
  Target<D, C, Acc> target{dst.tensor.data<D>(), nullptr, add};
  Tensor partials;
  if (chunks > 1) {
    partials = empty({chunks, kept.numel}, {dtype_of<Acc>(), device});
    target.partials = partials.data<Acc>();
  }
  const dim3 blocks(static_cast<unsigned>((kept.numel + outs - 1) / outs),
                    static_cast<unsigned>(chunks));
  cairn::cuda::launch(device, "accumulate_to", sum_to<D, G, C, Acc>, {blocks, dim3(kThreads)},
                      target, src.data<G>(), kept, summed, layout);
  if (chunks > 1)
    cairn::cuda::launch(device, "accumulate_to", finish_sums<D, C, Acc>,
                        cairn::cuda::grid_for(kept.numel * cairn::cuda::kWarp), target, chunks,
                        kept);
}

// src's dimensions, apart: those that dst has too, and those it was broadcast along.
struct Split {
  Shape kept, kept_src, kept_dst;
  Shape summed, summed_src;
};

Split split_of(const Tensor& dst, const Tensor& src) {
  Split split;
  const size_t missing = src.shape().size() - dst.shape().size();
  for (size_t d = 0; d < src.shape().size(); ++d) {
    if (d >= missing && dst.shape()[d - missing] == src.shape()[d]) {
      split.kept.push_back(src.shape()[d]);
      split.kept_src.push_back(src.strides()[d]);
      split.kept_dst.push_back(dst.strides()[d - missing]);
    } else {
      split.summed.push_back(src.shape()[d]);
      split.summed_src.push_back(src.strides()[d]);
    }
  }
  return split;
}

void accumulate_sums(const Dst& dst, In src) {
  using cairn::cuda::for_each_walk;
  if (src.numel() == 0) {
    if (!dst.add) raw::fill_(dst.tensor, 0);
    return;
  }
  const Split split = split_of(dst.tensor, src);
  dispatch_floating(dst.tensor.dtype(), "accumulate_to", [&]<class D>() {
    dispatch(src.dtype(), [&]<class G>() {
      for_each_walk<2>(split.kept, {&split.kept_src, &split.kept_dst}, [&](const Walk<2>& kept) {
        bool add = dst.add;
        for_each_walk<1>(split.summed, {&split.summed_src}, [&](const Walk<1>& summed) {
          launch_sums<D, G>(dst, src, add, kept, summed);
          add = true;
        });
      });
    });
  });
}

void accumulate(const Dst& dst, In src) {
  if (!dst || dst.tensor.numel() == 0) return;
  if (dst.tensor.shape() != src.shape()) {
    if (dst.zeros != nullptr) dst.zeros->clear();
    return accumulate_sums(dst, src);
  }
  dispatch_floating(dst.tensor.dtype(), "accumulate_to", [&]<class D>() {
    dispatch(src.dtype(), [&]<class G>() {
      using C =
          std::conditional_t<std::is_same_v<D, double> || std::is_same_v<G, double>, double, float>;
      run_gradient<D>("accumulate_to", dst, Converted<C, G>{}, Source<G>(src));
    });
  });
}

}  // namespace

void fill_accumulate() { accumulate_to.fill(DeviceType::cuda, accumulate); }

}  // namespace cairn::kernels::cuda
