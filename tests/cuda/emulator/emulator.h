// The host as a GPU: kernels run as plain C++, thread by thread, for tests on machines without one.
// Included before everything else in the cuda/ sources that the tests compile.
// Invariant: a stream's work is done only when somebody waits for it, so a forgotten wait, a buffer
// reused too early or a number baked into a captured graph gives wrong results here as on a device.
#pragma once

// Shared memory: one block runs at a time.
#define __shared__ static
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define CAIRN_EMULATED

namespace cairn::emulator {

struct Position {
  uint3 thread, block;
  dim3 block_size, grid_size;
};
// Of the thread that runs now.
extern Position position;

void* dynamic_shared();
// Waits until every thread of the block that has not ended is here.
void block_barrier();
// The same with a count, or a logical and, or, over the predicates.
int block_count(int predicate);

// Exchanges 16 bytes or less within the warp: every lane of `mask` gives one value and reads that
// of lane `from`; lanes that do not exist give their own.
void warp_exchange(unsigned mask, const void* give, void* take, size_t bytes, int from);
unsigned warp_ballot(unsigned mask, int predicate);
void warp_barrier(unsigned mask);
int lane();

// Queues a kernel on the stream, or adds it to the stream's capture.
cudaError_t submit(const char* name, dim3 blocks, dim3 threads, size_t shared, cudaStream_t stream,
                   std::function<void()> thread_body);

}  // namespace cairn::emulator

// --- what CUDA C++ has and C++ has not
// -------------------------------------------------------------
#define __launch_bounds__(...)
#define threadIdx (::cairn::emulator::position.thread)
#define blockIdx (::cairn::emulator::position.block)
#define blockDim (::cairn::emulator::position.block_size)
#define gridDim (::cairn::emulator::position.grid_size)

inline void __syncthreads() { ::cairn::emulator::block_barrier(); }
inline int __syncthreads_count(int p) { return ::cairn::emulator::block_count(p); }
inline int __syncthreads_or(int p) { return ::cairn::emulator::block_count(p) > 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu) { ::cairn::emulator::warp_barrier(mask); }
inline void __threadfence() {}
inline void __threadfence_system() {}
inline void __threadfence_block() {}

template <class T>
T cairn_shuffle(unsigned mask, T value, int from) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 16);
  T out;
  ::cairn::emulator::warp_exchange(mask, &value, &out, sizeof(T), from);
  return out;
}
// `from` outside the lane's own group of `width` lanes gives the lane's own value.
template <class T>
T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
  const int lane = ::cairn::emulator::lane();
  return cairn_shuffle(mask, v, lane / width * width + (from & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32) {
  const int lane = ::cairn::emulator::lane();
  const int from = lane ^ bits;
  return cairn_shuffle(mask, v, from < lane / width * width + width ? from : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
  const int lane = ::cairn::emulator::lane();
  const int from = lane + static_cast<int>(by);
  return cairn_shuffle(mask, v, from < lane / width * width + width ? from : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
  const int lane = ::cairn::emulator::lane();
  const int from = lane - static_cast<int>(by);
  return cairn_shuffle(mask, v, from >= lane / width * width ? from : lane);
}
inline unsigned __ballot_sync(unsigned mask, int p) {
  return ::cairn::emulator::warp_ballot(mask, p);
}
inline int __any_sync(unsigned mask, int p) { return ::cairn::emulator::warp_ballot(mask, p) != 0; }
inline int __all_sync(unsigned mask, int p) {
  return ::cairn::emulator::warp_ballot(mask, !p) == 0;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((uint64_t{a} * b) >> 32);
}

inline float __uint_as_float(unsigned x) {
  float f;
  std::memcpy(&f, &x, 4);
  return f;
}
inline unsigned __float_as_uint(float f) {
  unsigned x;
  std::memcpy(&x, &f, 4);
  return x;
}
inline int __float_as_int(float f) { return static_cast<int>(__float_as_uint(f)); }
inline float __int_as_float(int x) { return __uint_as_float(static_cast<unsigned>(x)); }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float rsqrtf(float x) { return 1.0f / __builtin_sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / __builtin_sqrt(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline float __fdividef(float a, float b) { return a / b; }

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T value) {
  *p = value;
}

// One thread runs at a time, so plain reads and writes are atomic.
template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v) {
  const T old = *p;
  *p = static_cast<T>(old + v);
  return old;
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) {
  const T old = *p;
  if (v > old) *p = v;
  return old;
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> v) {
  const T old = *p;
  if (v < old) *p = v;
  return old;
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  const T old = *p;
  if (old == expected) *p = v;
  return old;
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v) {
  const T old = *p;
  *p = v;
  return old;
}
template <class T>
T atomicCAS_system(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return atomicCAS(p, expected, v);
}
template <class T>
T atomicExch_system(T* p, std::type_identity_t<T> v) {
  return atomicExch(p, v);
}
