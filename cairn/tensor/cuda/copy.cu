// Copies with conversion and fills, over any strides.
// Invariant: the destination is walked in order of memory; what converts to what follows the CPU's
// copies, bit for bit.
#include "cairn/tensor/cuda/copy.h"
#include "cairn/tensor/cuda/device.cuh"
#include "cairn/tensor/raw.h"

namespace cairn::cuda {
namespace {

template <class To, class From>
__device__ __forceinline__ To convert(From from) {
  const auto value = widen(from);
  using Value = decltype(widen(from));
  if constexpr (std::is_same_v<To, From>) {
    return from;
  } else if constexpr (std::is_same_v<To, bool>) {
    return value != Value(0);
  } else if constexpr (std::is_integral_v<To> && !std::is_integral_v<Value>) {
    const auto wide = static_cast<double>(value);
    if (!(wide >= -0x1p63 && wide < 0x1p63)) return To(0);
    return static_cast<To>(static_cast<int64_t>(wide));
  } else {
    return narrow<To>(static_cast<Compute<To>>(value));
  }
}

// kVector elements a thread where both sides lie flat and aligned.
template <class To, class From>
__global__ void copy_flat(To* to, const From* from, int64_t n) {
  constexpr int kEach = kVector<std::conditional_t<(sizeof(To) > sizeof(From)), To, From>>;
  const int64_t whole = n / kEach;
  for (int64_t i = global_thread(); i < whole; i += global_threads()) {
    const auto in = reinterpret_cast<const Vector<From, kEach>*>(from)[i];
    Vector<To, kEach> out;
#pragma unroll
    for (int k = 0; k < kEach; ++k) out.value[k] = convert<To>(in.value[k]);
    reinterpret_cast<Vector<To, kEach>*>(to)[i] = out;
  }
  for (int64_t i = whole * kEach + global_thread(); i < n; i += global_threads())
    to[i] = convert<To>(from[i]);
}

template <class To, class From>
__global__ void copy_strided(To* to, const From* from, Walk<2> walk) {
  const int64_t i = global_thread();
  if (i >= walk.numel) return;
  const auto at = walk.offsets(static_cast<uint32_t>(i));
  to[at.at[0]] = convert<To>(from[at.at[1]]);
}

template <class T>
__global__ void fill_strided(T* to, T value, Walk<1> walk) {
  const int64_t i = global_thread();
  if (i < walk.numel) to[walk.offsets(static_cast<uint32_t>(i)).at[0]] = value;
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

template <class To, class From>
void copy_as(const Tensor& dst, const Tensor& src) {
  auto* const to = static_cast<To*>(dst.raw_data());
  const auto* const from = static_cast<const From*>(src.raw_data());
  const Device device = dst.device();
  for_each_walk<2>(dst.shape(), {&dst.strides(), &src.strides()}, [&](const Walk<2>& walk) {
    const bool dense =
        walk.rank == 0 || (walk.rank == 1 && walk.stride[0][0] == 1 && walk.stride[0][1] == 1);
    if (dense && aligned(to + walk.base[0]) && aligned(from + walk.base[1])) {
      launch(device, "copy_flat", copy_flat<To, From>, grid_for(walk.numel, 256, 4, 4096),
             to + walk.base[0], from + walk.base[1], walk.numel);
    } else {
      launch(device, "copy_strided", copy_strided<To, From>, grid_for(walk.numel), to, from, walk);
    }
  });
}

// Moving bits asks only for an element's size.
template <class Body>
void dispatch_size(int64_t size, Body&& body) {
  switch (size) {
    case 1:
      return body.template operator()<uint8_t>();
    case 2:
      return body.template operator()<uint16_t>();
    case 4:
      return body.template operator()<uint32_t>();
    default:
      return body.template operator()<uint64_t>();
  }
}

}  // namespace

void copy_on_device(const Tensor& dst, const Tensor& src) {
  if (dst.dtype() == src.dtype())
    return dispatch_size(item_size(dst.dtype()), [&]<class T>() { copy_as<T, T>(dst, src); });
  dispatch(dst.dtype(), [&]<class To>() {
    dispatch(src.dtype(), [&]<class From>() {
      if constexpr (!std::is_same_v<To, From>) copy_as<To, From>(dst, src);
    });
  });
}

void fill_on_device(const Tensor& dst, double value) {
  dispatch(dst.dtype(), [&]<class T>() {
    const Tensor host = full({}, value, {dst.dtype()});  // the CPU's conversion
    const T element = *host.data<T>();
    for_each_walk<1>(dst.shape(), {&dst.strides()}, [&](const Walk<1>& walk) {
      launch(dst.device(), "fill", fill_strided<T>, grid_for(walk.numel),
             static_cast<T*>(dst.raw_data()), element, walk);
    });
  });
}

}  // namespace cairn::cuda
