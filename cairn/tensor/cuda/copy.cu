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

constexpr int kTile = 32;
constexpr int kTileRows = 8;  // rows of a tile that a block moves at once

// A copy whose sides lie densely along different dimensions: along `inner` in the destination,
// along `cross` in the source. It is done in square tiles, one a block.
struct Transpose {
  int64_t inner, cross;  // sizes
  int64_t to_step;       // the destination's stride along cross
  int64_t from_step;     // the source's along inner
  Divisor tiles[2];      // along inner and cross
  Walk<2> rest;          // the other dimensions
};

template <class T>
__global__ void __launch_bounds__(kTile* kTileRows)
    copy_transposed(T* to, const T* from, Transpose plan) {
  __shared__ T tile[kTile][kTile + 1];  // odd rows, so that columns are in different banks
  const uint32_t block = blockIdx.x;
  const uint32_t above = plan.tiles[0].quotient(block);
  const uint32_t r = plan.tiles[1].quotient(above);
  const int64_t i0 = static_cast<int64_t>(block - above * plan.tiles[0].value) * kTile;
  const int64_t j0 = static_cast<int64_t>(above - r * plan.tiles[1].value) * kTile;
  const auto at = plan.rest.offsets(r);
  const int lane = static_cast<int>(threadIdx.x) % kTile;
  const int first = static_cast<int>(threadIdx.x) / kTile;
#pragma unroll
  for (int row = first; row < kTile; row += kTileRows)
    if (i0 + row < plan.inner && j0 + lane < plan.cross)
      tile[row][lane] = from[at.at[1] + (i0 + row) * plan.from_step + j0 + lane];
  __syncthreads();
#pragma unroll
  for (int row = first; row < kTile; row += kTileRows)
    if (j0 + row < plan.cross && i0 + lane < plan.inner)
      to[at.at[0] + (j0 + row) * plan.to_step + i0 + lane] = tile[lane][row];
}

template <class T>
__global__ void fill_strided(T* to, T value, Walk<1> walk) {
  const int64_t i = global_thread();
  if (i < walk.numel) to[walk.offsets(static_cast<uint32_t>(i)).at[0]] = value;
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// The plan where the walk is such a copy and its tiles are full enough; inner is 0 where not.
Transpose transpose_of(const Walk<2>& walk) {
  Transpose plan{};
  if (walk.rank < 2 || walk.stride[0][0] != 1 || walk.stride[0][1] == 1) return plan;
  constexpr uint32_t kLeast = 8;  // elements along a tile's side
  int cross = 1;
  while (cross < walk.rank && walk.stride[cross][1] != 1) ++cross;
  if (cross == walk.rank || walk.size[0].value < kLeast || walk.size[cross].value < kLeast)
    return plan;
  const auto tiles = [](uint32_t n) { return (int64_t{n} + kTile - 1) / kTile; };
  plan.inner = walk.size[0].value;
  plan.cross = walk.size[cross].value;
  plan.to_step = walk.stride[cross][0];
  plan.from_step = walk.stride[0][1];
  plan.tiles[0] = Divisor(tiles(walk.size[0].value));
  plan.tiles[1] = Divisor(tiles(walk.size[cross].value));
  plan.rest.numel = walk.numel / (plan.inner * plan.cross);
  for (int k = 0; k < 2; ++k) plan.rest.base[k] = walk.base[k];
  for (int d = 1; d < walk.rank; ++d) {
    if (d == cross) continue;
    plan.rest.size[plan.rest.rank] = walk.size[d];
    for (int k = 0; k < 2; ++k) plan.rest.stride[plan.rest.rank][k] = walk.stride[d][k];
    ++plan.rest.rank;
  }
  return plan;
}

template <class T>
bool copy_in_tiles(Device device, T* to, const T* from, const Walk<2>& walk) {
  const Transpose plan = transpose_of(walk);
  if (plan.inner == 0) return false;
  const int64_t blocks = int64_t{plan.tiles[0].value} * plan.tiles[1].value * plan.rest.numel;
  launch(device, "copy_transposed", copy_transposed<T>,
         {dim3(static_cast<unsigned>(blocks)), dim3(kTile * kTileRows)}, to, from, plan);
  return true;
}

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
      return;
    }
    bool done = false;
    // Conversions are left out: they would be many kernels, and rarely transpose.
    if constexpr (std::is_same_v<To, From>) done = copy_in_tiles(device, to, from, walk);
    if (!done)
      launch(device, "copy_strided", copy_strided<To, From>, grid_for(walk.numel), to, from, walk);
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
