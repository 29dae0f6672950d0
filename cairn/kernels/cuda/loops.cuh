// The loop of elementwise kernels: one output and up to three inputs that broadcast to it, of any
// strides.
// Invariant: one thread reads and writes an element, and reads before it writes, so the output may
// be one of the inputs.
#pragma once

#pragma nv_diag_suppress 186  // functors compare u8 with 0 too; must stand before their header

#include <algorithm>
#include <utility>

#include "cairn/kernels/elementwise.h"
#include "cairn/tensor/cuda/device.cuh"

namespace cairn::kernels::cuda {

using cairn::cuda::narrow;
using cairn::cuda::Vector;
using cairn::cuda::Walk;
using cairn::cuda::widen;

// An input on the device: the elements of a tensor or, where data is null, a number.
template <class T>
struct Input {
  const T* data = nullptr;
  Compute<T> number{};
};

// An input as the host has it.
template <class T>
struct Source {
  const Tensor* tensor = nullptr;  // null: the number
  Compute<T> number{};

  Source() = default;
  explicit Source(const Tensor& t) : tensor(&t) {}
  explicit Source(const Operand& operand) : tensor(operand.tensor) {
    using C = Compute<T>;
    if constexpr (std::is_floating_point_v<C>)
      number = static_cast<C>(operand.floating);
    else if constexpr (std::is_same_v<T, bool>)
      number = operand.integer != 0;
    else
      number = static_cast<C>(operand.integer);
  }
};

// --- on the device
// -------------------------------------------------------------------------------

// kGroups stretches of kEach elements of one input, in the compute type.
template <int kGroups, int kEach, class T>
struct Values {
  Compute<T> at[kGroups][kEach];
};

// What is stored for result r: the sum with the old value where `add`, in r's type.
template <bool kAdds, class Out, class R>
__device__ __forceinline__ Out finished(R r, bool add, Out old) {
  if constexpr (kAdds) {
    if (add) r = static_cast<R>(widen(old)) + r;
  }
  return narrow<Out>(static_cast<Compute<Out>>(r));
}

template <bool kAdds, int kEach, class Out, class R>
__device__ __forceinline__ void store_group(Out* to, bool add, int count,
                                            const R (&result)[kEach]) {
  if (count == kEach) {
    auto* const place = reinterpret_cast<Vector<Out, kEach>*>(to);
    Vector<Out, kEach> out{};
    if (kAdds && add) out = *place;
#pragma unroll
    for (int k = 0; k < kEach; ++k) out.value[k] = finished<kAdds>(result[k], add, out.value[k]);
    *place = out;
  } else {
#pragma unroll
    for (int k = 0; k < kEach; ++k)
      if (k < count) to[k] = finished<kAdds>(result[k], add, kAdds && add ? to[k] : Out{});
  }
}

// The stretches of one thread: where they lie and how many elements of each are there.
template <int kGroups, int kOperands>
struct Places {
  typename Walk<kOperands>::Offsets offsets[kGroups];
  int count[kGroups];
  bool whole;  // all elements of all stretches are there
};

// What the thread reads of one input. Loads come before the first use of what they bring, so that
// they are in flight together.
template <int kGroups, int kEach, int kOperands, class T>
__device__ __forceinline__ Values<kGroups, kEach, T> load_all(
    const Input<T>& in, int operand, const Walk<kOperands>& walk,
    const Places<kGroups, kOperands>& places) {
  Values<kGroups, kEach, T> values{};
  if (in.data == nullptr || walk.stride[0][operand] == 0) {
#pragma unroll
    for (int u = 0; u < kGroups; ++u) {
      if (places.count[u] == 0) continue;
      const Compute<T> one =
          in.data == nullptr ? in.number : widen(in.data[places.offsets[u].at[operand]]);
#pragma unroll
      for (int k = 0; k < kEach; ++k) values.at[u][k] = one;
    }
  } else if (places.whole) {
    Vector<T, kEach> loaded[kGroups];
#pragma unroll
    for (int u = 0; u < kGroups; ++u)
      loaded[u] =
          *reinterpret_cast<const Vector<T, kEach>*>(in.data + places.offsets[u].at[operand]);
#pragma unroll
    for (int u = 0; u < kGroups; ++u)
#pragma unroll
      for (int k = 0; k < kEach; ++k) values.at[u][k] = widen(loaded[u].value[k]);
  } else {
    // Elements that are not there repeat the stretch's first one: computing from it cannot trap.
#pragma unroll
    for (int u = 0; u < kGroups; ++u)
#pragma unroll
      for (int k = 0; k < kEach; ++k)
        if (places.count[u] > 0)
          values.at[u][k] =
              widen(in.data[places.offsets[u].at[operand] + (k < places.count[u] ? k : 0)]);
  }
  return values;
}

// out (+)= fn(in...) for kGroups stretches of kEach elements a thread. kEach > 1 asks for what
// vectors_fit() checks.
template <int kGroups, int kEach, bool kAdds, class Fn, class Out, class... Ins, size_t... kIndex>
__device__ __forceinline__ void loop_body(std::index_sequence<kIndex...>, const Fn& fn, bool add,
                                          const Walk<1 + sizeof...(Ins)>& walk, Out* out,
                                          const Input<Ins>&... in) {
  constexpr int kOperands = 1 + sizeof...(Ins);
  Places<kGroups, kOperands> places;
  places.whole = true;
#pragma unroll
  for (int u = 0; u < kGroups; ++u) {
    const int64_t group =
        (static_cast<int64_t>(blockIdx.x) * kGroups + u) * blockDim.x + threadIdx.x;
    const int64_t left = walk.numel - group * kEach;
    places.count[u] = left >= kEach ? kEach : left > 0 ? static_cast<int>(left) : 0;
    places.whole = places.whole && left >= kEach;
    if (left > 0) places.offsets[u] = walk.offsets(static_cast<uint32_t>(group * kEach));
  }
  const auto compute = [&](const auto&... values) {
#pragma unroll
    for (int u = 0; u < kGroups; ++u) {
      if (places.count[u] == 0) continue;
      decltype(fn(values.at[0][0]...)) result[kEach];
#pragma unroll
      for (int k = 0; k < kEach; ++k) result[k] = fn(values.at[u][k]...);
      store_group<kAdds, kEach>(out + places.offsets[u].at[0], add, places.count[u], result);
    }
  };
  compute(load_all<kGroups, kEach>(in, static_cast<int>(kIndex) + 1, walk, places)...);
}

template <int kGroups, int kEach, bool kAdds, class Fn, class Out, class... Ins>
__global__ void __launch_bounds__(256)
    elementwise(Fn fn, bool add, Walk<1 + sizeof...(Ins)> walk, Out* out, Input<Ins>... in) {
  loop_body<kGroups, kEach, kAdds>(std::index_sequence_for<Ins...>(), fn, add, walk, out, in...);
}

// --- on the host
// ---------------------------------------------------------------------------------

// Strides of `t` as it broadcasts to `shape`; all 0 for a number.
inline Shape strides_within(const Tensor* t, const Shape& shape) {
  Shape strides(shape.size(), 0);
  if (t == nullptr) return strides;
  const size_t missing = shape.size() - t->shape().size();
  for (size_t d = missing; d < shape.size(); ++d)
    if (t->shape()[d - missing] != 1) strides[d] = t->strides()[d - missing];
  return strides;
}

// Whether kEach elements of every operand from each multiple of kEach on lie together, aligned for
// one access, or are one and the same. address[k] is 0 for a number.
template <int kOperands>
bool vectors_fit(const Walk<kOperands>& walk, int each, const uintptr_t (&address)[kOperands],
                 const int64_t (&size)[kOperands]) {
  if (walk.rank == 0 || (walk.rank > 1 && walk.size[0].value % static_cast<uint32_t>(each) != 0))
    return false;
  for (int k = 0; k < kOperands; ++k) {
    const int64_t step = walk.stride[0][k];
    if (address[k] == 0 || (step == 0 && k > 0)) continue;
    if (step != 1) return false;
    for (int d = 1; d < walk.rank; ++d)
      if (walk.stride[d][k] % each != 0) return false;
    const uintptr_t first = address[k] + static_cast<uintptr_t>(walk.base[k] * size[k]);
    if (first % static_cast<uintptr_t>(each * size[k]) != 0) return false;
  }
  return true;
}

// Whether T is an integer type of tensors. Loops over nothing else go element by element: they are
// rarely large, and vectors would double the kernels to compile.
template <class T>
constexpr bool kInteger = std::is_same_v<T, int64_t> || std::is_same_v<T, int32_t> ||
                          std::is_same_v<T, uint8_t> || std::is_same_v<T, bool>;

template <int kEach, bool kAdds, class Fn, class Out, class... Ins>
void launch_loop(Device device, const char* name, const Fn& fn, bool add,
                 const Walk<1 + sizeof...(Ins)>& walk, Out* out, const Input<Ins>&... in) {
  constexpr bool kIntegers = kInteger<Out> && (kInteger<Ins> && ...);
  // Several loads in flight for a thread, 32 bytes or more where they are vectors.
  constexpr int kGroups = kIntegers ? 4 : sizeof...(Ins) > 2 ? 1 : 2;
  cairn::cuda::launch(device, name, elementwise<kGroups, kEach, kAdds, Fn, Out, Ins...>,
                      cairn::cuda::grid_for(walk.numel, 256, kGroups * kEach), fn, add, walk, out,
                      in...);
}

// out = fn(sources...), or out += with kAdds and `add`. Fn is a functor whose call takes the
// sources' compute types; the sum is formed in the type it returns.
template <class Out, bool kAdds, class Fn, class... Ins>
void run_loop(const char* name, const Tensor& out, bool add, const Fn& fn,
              const Source<Ins>&... sources) {
  constexpr int kOperands = 1 + sizeof...(Ins);
  constexpr int kEach = static_cast<int>(16 / std::max({sizeof(Out), sizeof(Ins)...}));
  auto* const to = static_cast<Out*>(out.raw_data());
  const auto data_of = [](const Tensor* t) { return t == nullptr ? nullptr : t->raw_data(); };
  const uintptr_t address[] = {reinterpret_cast<uintptr_t>(to),
                               reinterpret_cast<uintptr_t>(data_of(sources.tensor))...};
  const int64_t size[] = {sizeof(Out), sizeof(Ins)...};
  const Shape strides[] = {out.strides(), strides_within(sources.tensor, out.shape())...};
  const Shape* pointers[kOperands];
  for (int k = 0; k < kOperands; ++k) pointers[k] = &strides[k];
  constexpr bool kVectors = !(kInteger<Out> && (kInteger<Ins> && ...));
  cairn::cuda::for_each_walk<kOperands>(out.shape(), pointers, [&](const Walk<kOperands>& walk) {
    const auto run = [&](const Input<Ins>&... in) {
      if constexpr (kVectors) {
        if (vectors_fit(walk, kEach, address, size))
          return launch_loop<kEach, kAdds>(out.device(), name, fn, add, walk, to, in...);
      }
      launch_loop<1, kAdds>(out.device(), name, fn, add, walk, to, in...);
    };
    run(Input<Ins>{static_cast<const Ins*>(data_of(sources.tensor)), sources.number}...);
  });
}

// The same for a gradient.
template <class Out, class Fn, class... Ins>
void run_gradient(const char* name, const Dst& dst, const Fn& fn, const Source<Ins>&... sources) {
  if (dst.zeros != nullptr) dst.zeros->clear();
  run_loop<Out, true>(name, dst.tensor, dst.add, fn, sources...);
}

template <class T>
constexpr bool kFloating = std::is_floating_point_v<Compute<T>>;

}  // namespace cairn::kernels::cuda
