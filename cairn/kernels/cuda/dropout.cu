// Dropout.
// Invariant: an element's fate depends on seed, offset and its own number alone, as on the CPU.
#include <cmath>

#include "cairn/kernels/cuda/loops.cuh"
#include "cairn/kernels/embedding.h"
#include "cairn/tensor/cuda/graph.h"
#include "cairn/tensor/cuda/philox.cuh"

namespace cairn::kernels::cuda {
namespace {

// What one thread does: whole Philox blocks and whole 16-byte vectors.
template <class T>
constexpr int kEach = std::max(4, cairn::cuda::kVector<T>);

template <class T>
struct Dropout {
  const T* x;
  T* out;
  int64_t numel;
  cairn::cuda::Stream stream;
  uint32_t threshold;  // kept where the upper 24 bits of the word reach it
  Compute<T> scale;
  bool add;
  bool aligned;

  __device__ __forceinline__ T one(T value, T old, uint32_t word) const {
    const Compute<T> kept = (word >> 8) >= threshold ? widen(value) * scale : Compute<T>(0);
    return narrow<T>(add ? widen(old) + kept : kept);
  }
};

template <class T>
__global__ void __launch_bounds__(256) dropout(Dropout<T> p) {
  constexpr int kVector = cairn::cuda::kVector<T>;
  const int64_t group = cairn::cuda::global_thread();
  const int64_t first = group * kEach<T>;
  if (first >= p.numel) return;
  uint32_t words[kEach<T> / 4][4];
#pragma unroll
  for (int b = 0; b < kEach<T> / 4; ++b)
    p.stream.words(static_cast<uint64_t>(group * (kEach<T> / 4) + b), words[b]);
  if (p.aligned && first + kEach<T> <= p.numel) {
#pragma unroll
    for (int v = 0; v < kEach<T>; v += kVector) {
      const auto x = *reinterpret_cast<const Vector<T>*>(p.x + first + v);
      auto* const place = reinterpret_cast<Vector<T>*>(p.out + first + v);
      Vector<T> out{};
      if (p.add) out = *place;
#pragma unroll
      for (int k = 0; k < kVector; ++k)
        out.value[k] = p.one(x.value[k], out.value[k], words[(v + k) / 4][(v + k) % 4]);
      *place = out;
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < kEach<T>; ++k) {
    const int64_t i = first + k;
    if (i < p.numel) p.out[i] = p.one(p.x[i], p.add ? p.out[i] : T{}, words[k / 4][k % 4]);
  }
}

bool on_vectors(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

void dropout_on_device(const Dst& out, In x, const DropoutParams& params) {
  if (out.zeros != nullptr) out.zeros->clear();
  const int64_t n = x.numel();
  if (n == 0) return;
  const Device device = x.device();
  dispatch_floating(x.dtype(), "dropout", [&]<class T>() {
    Dropout<T> p;
    p.x = x.data<T>();
    p.out = out.tensor.data<T>();
    p.numel = n;
    p.stream = {params.seed, params.offset, cairn::cuda::random_shift(device)};
    p.threshold = static_cast<uint32_t>(std::ceil(params.p * 0x1p24));
    p.scale = static_cast<Compute<T>>(params.scale);
    p.add = out.add;
    p.aligned = on_vectors(p.x) && on_vectors(p.out);
    cairn::cuda::launch(device, "dropout", dropout<T>, cairn::cuda::grid_for(n, 256, kEach<T>), p);
  });
}

}  // namespace

void fill_dropout() { dropout_apply.fill(DeviceType::cuda, dropout_on_device); }

}  // namespace cairn::kernels::cuda
