// What kernels share on the device: element types, 16-byte accesses, sums over warps and blocks.
// Invariant: sums are formed in an order that depends on the block's shape alone, so they repeat
// bit for bit.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <bit>
#include <cstdint>
#include <type_traits>

#include "cairn/tensor/cuda/launch.h"
#include "cairn/tensor/cuda/walk.h"
#include "cairn/tensor/dtype.h"

namespace cairn::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Values of 16 bytes that a thread moves at once.
template <class T>
constexpr int kVector = static_cast<int>(16 / sizeof(T));
template <class T, int kCount = kVector<T>>
struct alignas(sizeof(T) * kCount) Vector {
  T value[kCount];
};

template <class T>
__device__ __forceinline__ Compute<T> widen(T x) {
  if constexpr (std::is_same_v<T, bfloat16>)
    return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
  else if constexpr (std::is_same_v<T, float16>)
    return __half2float(std::bit_cast<__half>(x.bits));
  else
    return x;
}

// Rounds to nearest even.
template <class T>
__device__ __forceinline__ T narrow(Compute<T> x) {
  if constexpr (std::is_same_v<T, bfloat16>)
    return std::bit_cast<bfloat16>(__float2bfloat16_rn(x));
  else if constexpr (std::is_same_v<T, float16>)
    return std::bit_cast<float16>(__float2half_rn(x));
  else
    return x;
}

// Dynamic shared memory of the block, aligned for every type.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef CAIRN_EMULATED
  return static_cast<T*>(emulator::dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char cairn_dynamic_shared[];
  return reinterpret_cast<T*>(cairn_dynamic_shared);
#endif
}

__device__ __forceinline__ int64_t global_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t global_threads() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

// combine(a, b) over the lanes of a warp; every lane gets the result. All lanes must call it.
template <class T, class Combine>
__device__ __forceinline__ T warp_reduce(T value, Combine combine) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2)
    value = combine(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

// The same over a 1-d block of whole warps; every thread gets the result. `identity` fills warps
// that are not there. All threads must call it; it begins and ends with a barrier's guarantees.
template <class T, class Combine>
__device__ __forceinline__ T block_reduce(T value, T identity, Combine combine) {
  __shared__ T partial[kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  value = warp_reduce(value, combine);
  __syncthreads();  // the last call's readers are done
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  value = lane < warps ? partial[lane] : identity;
  return warp_reduce(value, combine);
}

struct Plus {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

}  // namespace cairn::cuda
