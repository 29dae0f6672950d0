// Kernels that give each row of a contiguous matrix to a group of threads: a warp or a block.
// Invariant: a row's sums are formed in an order that depends on its length and the group alone.
#pragma once

#include "cairn/tensor/cuda/device.cuh"

namespace cairn::kernels::cuda {

using cairn::cuda::kVector;
using cairn::cuda::kWarp;
using cairn::cuda::Vector;
using cairn::cuda::widen;

// kSize threads that share a row: kWarp, or the whole block.
template <int kSize>
struct Group {
  __device__ __forceinline__ static int thread() { return static_cast<int>(threadIdx.x) % kSize; }
  // The number of this group in the grid, and how many there are.
  __device__ __forceinline__ static int64_t number() {
    return (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kSize;
  }
  __device__ __forceinline__ static int64_t count() {
    return int64_t{gridDim.x} * blockDim.x / kSize;
  }
  // combine over the group; every thread gets the result, and all must call it.
  template <class T, class Combine>
  __device__ __forceinline__ static T reduce(T value, T identity, Combine combine) {
    if constexpr (kSize == kWarp)
      return cairn::cuda::warp_reduce(value, combine);
    else
      return cairn::cuda::block_reduce(value, identity, combine);
  }
};

// body(position, values) for this thread's kEach elements at a time of a row; width is a multiple
// of kEach.
template <int kSize, int kEach, class T, class Body>
__device__ __forceinline__ void over_row(const T* row, int64_t width, const Body& body) {
#pragma unroll 4
  for (int64_t i = Group<kSize>::thread() * kEach; i < width; i += kSize * kEach)
    body(i, *reinterpret_cast<const Vector<T, kEach>*>(row + i));
}

constexpr int kRowThreads = 256;

// Calls body.operator()<kSize, kEach>() for the way to read rows of this width: a warp each and
// single elements where they are short, else a block each, and vectors where memory allows.
template <class T, class Body>
void with_rows(int64_t width, std::initializer_list<const void*> pointers, Body&& body) {
  if (width <= 512) return body.template operator()<kWarp, 1>();
  bool aligned = width % kVector<T> == 0;
  for (const void* p : pointers) aligned = aligned && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  if (aligned) return body.template operator()<kRowThreads, kVector<T>>();
  body.template operator()<kRowThreads, 1>();
}

}  // namespace cairn::kernels::cuda
