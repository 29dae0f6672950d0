// The feed on the device: batches from resident data, and running values of what is logged.
// Invariant: nothing comes from the host but addresses and sizes, so a captured step can be run
// again and takes the next batch.
#include "cairn/kernels/feed.h"

#include "cairn/tensor/cuda/device.cuh"

namespace cairn::kernels::cuda {
namespace {

using namespace cairn::cuda;

constexpr int kBytes = 256;

// Strides in elements.
struct Images {
  Divisor height, width, channels;
  int64_t to_image, to_channel, to_row, to_column;
  int64_t from_image, from_channel, from_row, from_column;
};

// A plane is one channel of one image. kEach neighbours of a row-major plane a thread.
template <class T, int kEach>
__global__ void gather_planes(T* x, const uint8_t* bytes, const float* table, const int64_t* order,
                              const int64_t* cursor, Images g, Divisor plane, uint32_t count) {
  const int64_t* const at = order + *cursor;
  for (auto i = static_cast<uint32_t>(global_thread()); i < count;
       i += static_cast<uint32_t>(global_threads())) {
    const uint32_t image_plane = plane.quotient(i);
    const int64_t pixel = static_cast<int64_t>(i - image_plane * plane.value) * kEach;
    const uint32_t b = g.channels.quotient(image_plane);
    const uint32_t c = image_plane - b * g.channels.value;
    const float* const values = table + c * kBytes;
    const auto in = *reinterpret_cast<const Vector<uint8_t, kEach>*>(
        bytes + __ldg(at + b) * g.from_image + c * g.from_channel + pixel);
    Vector<T, kEach> out;
#pragma unroll
    for (int k = 0; k < kEach; ++k) out.value[k] = narrow<T>(__ldg(values + in.value[k]));
    *reinterpret_cast<Vector<T, kEach>*>(x + b * g.to_image + c * g.to_channel + pixel) = out;
  }
}

// Any strides, channels fastest.
template <class T>
__global__ void gather_strided(T* x, const uint8_t* bytes, const float* table, const int64_t* order,
                               const int64_t* cursor, Images g, uint32_t count) {
  const int64_t* const at = order + *cursor;
  for (auto i = static_cast<uint32_t>(global_thread()); i < count;
       i += static_cast<uint32_t>(global_threads())) {
    uint32_t rest = g.channels.quotient(i);
    const uint32_t c = i - rest * g.channels.value;
    uint32_t next = g.width.quotient(rest);
    const uint32_t w = rest - next * g.width.value;
    const uint32_t b = g.height.quotient(next);
    const uint32_t h = next - b * g.height.value;
    const uint8_t byte = bytes[__ldg(at + b) * g.from_image + h * g.from_row + w * g.from_column +
                               c * g.from_channel];
    x[b * g.to_image + h * g.to_row + w * g.to_column + c * g.to_channel] =
        narrow<T>(__ldg(table + c * kBytes + byte));
  }
}

bool aligned(const void* p, int64_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

template <class T>
void gather_as(Out x, In bytes, In table, In order, In cursor) {
  constexpr int kEach = 4;
  const int64_t height = x.size(2), width = x.size(3);
  const Images g{.height = Divisor(height),
                 .width = Divisor(width),
                 .channels = Divisor(x.size(1)),
                 .to_image = x.stride(0),
                 .to_channel = x.stride(1),
                 .to_row = x.stride(2),
                 .to_column = x.stride(3),
                 .from_image = bytes.stride(0),
                 .from_channel = bytes.dim() == 4 ? bytes.stride(3) : 0,
                 .from_row = bytes.stride(1),
                 .from_column = bytes.stride(2)};
  const auto planes_lie = [&](int64_t row, int64_t column) {
    return (width == 1 || column == 1) && (height == 1 || row == width);
  };
  const bool flat = planes_lie(g.to_row, g.to_column) && planes_lie(g.from_row, g.from_column);
  const bool quads = flat && height * width % kEach == 0 && g.to_image % kEach == 0 &&
                     g.to_channel % kEach == 0 && g.from_image % kEach == 0 &&
                     g.from_channel % kEach == 0 && aligned(bytes.raw_data(), kEach) &&
                     aligned(x.raw_data(), kEach * sizeof(T));
  const Device device = x.device();
  const int64_t most = 8L * limits_of(device).multiprocessors;
  const auto count = static_cast<uint32_t>(x.numel());
  T* const to = x.data<T>();
  const auto* const from = bytes.data<uint8_t>();
  const float* const values = table.data<float>();
  const int64_t* const samples = order.data<int64_t>();
  const int64_t* const at = cursor.data<int64_t>();
  if (quads)
    launch(device, "gather_images", gather_planes<T, kEach>,
           grid_for(x.numel() / kEach, 256, 1, most), to, from, values, samples, at, g,
           Divisor(height * width / kEach), count / kEach);
  else if (flat)
    launch(device, "gather_images", gather_planes<T, 1>, grid_for(x.numel(), 256, 1, most), to,
           from, values, samples, at, g, Divisor(height * width), count);
  else
    launch(device, "gather_images", gather_strided<T>, grid_for(x.numel(), 256, 1, most), to, from,
           values, samples, at, g, count);
}

void gather_images_on_device(Out x, In bytes, In table, In order, In cursor) {
  if (x.numel() == 0) return;
  check(x.numel() < int64_t{1} << 31,
        "gather_images: a batch must have fewer than 2^31 values, got ", x.numel());
  dispatch_floating(x.dtype(), "gather_images",
                    [&]<class T>() { gather_as<T>(x, bytes, table, order, cursor); });
}

// One block a row; U is the widest unit that rows and their addresses are multiples of.
template <class U>
__global__ void gather_units(U* y, const U* rows, const int64_t* order, const int64_t* cursor,
                             int64_t units, int64_t count) {
  const int64_t* const at = order + *cursor;
  for (int64_t b = blockIdx.x; b < count; b += gridDim.x) {
    const U* const from = rows + at[b] * units;
    U* const to = y + b * units;
    for (int64_t i = threadIdx.x; i < units; i += blockDim.x) to[i] = from[i];
  }
}

void gather_rows_on_device(Out y, In rows, In order, In cursor) {
  if (y.numel() == 0) return;
  const int64_t bytes = rows.nbytes() / rows.size(0);
  const auto fits = [&](int64_t unit) {
    return bytes % unit == 0 && aligned(y.raw_data(), unit) && aligned(rows.raw_data(), unit);
  };
  const auto copy = [&]<class U>() {
    const int64_t units = bytes / static_cast<int64_t>(sizeof(U));
    // Short rows (labels) would leave most of a block idle; there are few of them.
    const int threads = units >= 256 ? 256 : 32;
    const int64_t blocks = std::min<int64_t>(y.size(0), 1 << 16);
    launch(y.device(), "gather_rows", gather_units<U>,
           Grid{dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads))},
           static_cast<U*>(y.raw_data()), static_cast<const U*>(rows.raw_data()),
           order.data<int64_t>(), cursor.data<int64_t>(), units, y.size(0));
  };
  if (fits(16)) return copy.template operator()<Vector<uint32_t, 4>>();
  if (fits(8)) return copy.template operator()<uint64_t>();
  if (fits(4)) return copy.template operator()<uint32_t>();
  copy.template operator()<uint8_t>();
}

__global__ void add_to_cursor(int64_t* cursor, int64_t by) { *cursor += by; }

void advance_cursor_on_device(Out cursor, int64_t by) {
  launch(cursor.device(), "advance_cursor", add_to_cursor, Grid{dim3(1), dim3(1)},
         cursor.data<int64_t>(), by);
}

template <class T>
__global__ void accumulate_one(double* total, const T* value, Running how, double weight) {
  const auto v = static_cast<double>(widen(*value));
  const double sum = *total;
  if (how == Running::weighted_sum)
    *total = sum + __dmul_rn(v, weight);  // rounded, as on the CPU: no fused multiply-add
  else if (how == Running::sum)
    *total = sum + v;
  else if (v != v)
    *total = v;
  else if (how == Running::min)
    *total = v < sum ? v : sum;
  else
    *total = sum < v ? v : sum;
}

void accumulate_on_device(Out total, In value, Running how, double weight) {
  dispatch(value.dtype(), [&]<class T>() {
    launch(total.device(), "accumulate", accumulate_one<T>, Grid{dim3(1), dim3(1)},
           total.data<double>(), value.data<T>(), how, weight);
  });
}

}  // namespace

void fill_feed() {
  gather_images.fill(DeviceType::cuda, gather_images_on_device);
  gather_rows.fill(DeviceType::cuda, gather_rows_on_device);
  advance_cursor.fill(DeviceType::cuda, advance_cursor_on_device);
  accumulate.fill(DeviceType::cuda, accumulate_on_device);
}

}  // namespace cairn::kernels::cuda
