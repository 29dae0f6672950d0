// The transforms. Invariant: fold() and apply() share their arithmetic (scale_byte,
// normalize_value), so the table of the fast path holds the bits that the slow path computes.
#include "cairn/data/transform.h"

#include <algorithm>
#include <cmath>

#include "cairn/tensor/factory.h"
#include "cairn/tensor/raw.h"

namespace cairn::data {
namespace {

constexpr int64_t kBytes = 256;

// As torchvision computes it: a division in f32, not a multiplication by 1/255.
float scale_byte(uint8_t byte) { return static_cast<float>(byte) / 255.0f; }
float normalize_value(float x, float mean, float std) { return (x - mean) / std; }

// A uniform integer in [0, n); the high half of a product keeps the bias below n / 2^32.
int64_t draw_below(Generator& generator, int64_t n) {
  const uint32_t word = philox_word(generator.seed(), generator.reserve(1), 0);
  return static_cast<int64_t>((uint64_t{word} * static_cast<uint64_t>(n)) >> 32);
}

// Dimensions of height and width under the layout rule of transform.h.
struct ImageAxes {
  int64_t height;
  int64_t width;
};

ImageAxes image_axes(const Tensor& x, const char* op) {
  const bool bytes = x.dtype() == DType::u8;
  check((bytes || is_floating(x.dtype())) && (x.dim() == 2 || x.dim() == 3), op,
        ": image must be u8 [H, W] or [H, W, C] or floating [H, W] or [C, H, W], got ", x.dtype(),
        " ", x.shape());
  const int64_t height = bytes || x.dim() == 2 ? 0 : 1;
  return {height, height + 1};
}

}  // namespace

ByteTable::ByteTable(int64_t channel_count)
    : channels(channel_count), values(static_cast<size_t>(channel_count * kBytes)) {}

bool Transform::fold(ByteTable&) const { return false; }

Compose::Compose(std::vector<std::shared_ptr<const Transform>> steps) : steps_(std::move(steps)) {
  for (const auto& step : steps_)
    check(step != nullptr, "compose: every step must be given, got null");
}

Tensor Compose::apply(const Tensor& x, Generator& generator) const {
  Tensor out = x;
  for (const auto& step : steps_) out = step->apply(out, generator);
  return out;
}

bool Compose::fold(ByteTable& table) const {
  return std::all_of(steps_.begin(), steps_.end(),
                     [&](const auto& step) { return step->fold(table); });
}

Tensor ToTensor::apply(const Tensor& x, Generator&) const {
  check(x.dtype() == DType::u8 && (x.dim() == 2 || x.dim() == 3),
        "to_tensor: image must be u8 [H, W] or [H, W, C], got ", x.dtype(), " ", x.shape());
  const int64_t height = x.size(0);
  const int64_t width = x.size(1);
  const int64_t channels = x.dim() == 3 ? x.size(2) : 1;
  const int64_t channel_stride = x.dim() == 3 ? x.stride(2) : 0;
  Tensor out = empty({channels, height, width});
  float* to = out.data<float>();
  const uint8_t* from = x.data<uint8_t>();
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t h = 0; h < height; ++h) {
      const uint8_t* row = from + c * channel_stride + h * x.stride(0);
      for (int64_t w = 0; w < width; ++w) *to++ = scale_byte(row[w * x.stride(1)]);
    }
  return out;
}

bool ToTensor::fold(ByteTable& table) const {
  if (table.scaled) return false;  // apply() would refuse the f32 image
  table.scaled = true;
  for (size_t i = 0; i < table.values.size(); ++i)
    table.values[i] = scale_byte(static_cast<uint8_t>(i % kBytes));
  return true;
}

Normalize::Normalize(std::vector<float> mean, std::vector<float> std)
    : mean_(std::move(mean)), std_(std::move(std)) {
  check(!mean_.empty() && mean_.size() == std_.size(),
        "normalize: mean and std must have one value per channel each, got ", mean_.size(), " and ",
        std_.size());
  for (size_t c = 0; c < mean_.size(); ++c) {
    check(std::isfinite(mean_[c]), "normalize: mean must be finite, got ", mean_[c],
          " for channel ", c);
    check(std::isfinite(std_[c]) && std_[c] != 0.0f,
          "normalize: std must be finite and not 0, got ", std_[c], " for channel ", c);
  }
}

Tensor Normalize::apply(const Tensor& x, Generator&) const {
  check(x.dtype() == DType::f32 && x.dim() == 3, "normalize: image must be f32 [C, H, W], got ",
        x.dtype(), " ", x.shape(), x.dtype() == DType::u8 ? "; put ToTensor before it" : "");
  check(x.size(0) == static_cast<int64_t>(mean_.size()), "normalize: image must have ",
        mean_.size(), " channels like mean, got ", x.size(0));
  const Tensor image = raw::contiguous(x);
  Tensor out = empty(x.shape());
  const int64_t plane = x.size(1) * x.size(2);
  const float* from = image.data<float>();
  float* to = out.data<float>();
  for (size_t c = 0; c < mean_.size(); ++c)
    for (int64_t i = 0; i < plane; ++i) *to++ = normalize_value(*from++, mean_[c], std_[c]);
  return out;
}

bool Normalize::fold(ByteTable& table) const {
  if (!table.scaled || table.channels != static_cast<int64_t>(mean_.size())) return false;
  for (size_t i = 0; i < table.values.size(); ++i) {
    const size_t c = i / kBytes;
    table.values[i] = normalize_value(table.values[i], mean_[c], std_[c]);
  }
  return true;
}

RandomCrop::RandomCrop(RandomCropOptions options) : options_(options) {
  check(options_.size >= 1, "random_crop: size must be at least 1, got ", options_.size);
  check(options_.padding >= 0 && options_.padding <= (int64_t{1} << 20),
        "random_crop: padding must be 0 to 2^20, got ", options_.padding);
}

Tensor RandomCrop::apply(const Tensor& x, Generator& generator) const {
  const ImageAxes axes = image_axes(x, "random_crop");
  const int64_t size = options_.size;
  const int64_t padding = options_.padding;
  const int64_t room_h = x.size(axes.height) + 2 * padding - size;
  const int64_t room_w = x.size(axes.width) + 2 * padding - size;
  check(room_h >= 0 && room_w >= 0, "random_crop: size must be at most the padded image's ",
        x.size(axes.height) + 2 * padding, " x ", x.size(axes.width) + 2 * padding, ", got ", size);
  // First row and column of the cut in the image's own coordinates; negative ones are padding.
  const int64_t top = draw_below(generator, room_h + 1) - padding;
  const int64_t left = draw_below(generator, room_w + 1) - padding;
  const int64_t top_in = std::clamp<int64_t>(top, 0, x.size(axes.height));
  const int64_t left_in = std::clamp<int64_t>(left, 0, x.size(axes.width));
  const int64_t bottom_in = std::clamp<int64_t>(top + size, top_in, x.size(axes.height));
  const int64_t right_in = std::clamp<int64_t>(left + size, left_in, x.size(axes.width));
  const Tensor inside =
      raw::slice(raw::slice(x, axes.height, top_in, bottom_in), axes.width, left_in, right_in);
  if (inside.size(axes.height) == size && inside.size(axes.width) == size) return inside;
  Shape shape = x.shape();
  shape[static_cast<size_t>(axes.height)] = size;
  shape[static_cast<size_t>(axes.width)] = size;
  Tensor out = zeros(shape, {x.dtype(), x.device()});
  const Tensor hole = raw::slice(raw::slice(out, axes.height, top_in - top, bottom_in - top),
                                 axes.width, left_in - left, right_in - left);
  raw::copy_(hole, inside);
  return out;
}

RandomHorizontalFlip::RandomHorizontalFlip(double p) : p_(p) {
  check(p >= 0 && p <= 1, "random_horizontal_flip: p must be in [0, 1], got ", p);
}

Tensor RandomHorizontalFlip::apply(const Tensor& x, Generator& generator) const {
  const ImageAxes axes = image_axes(x, "random_horizontal_flip");
  const uint32_t word = philox_word(generator.seed(), generator.reserve(1), 0);
  if (static_cast<double>(uniform_float(word)) >= p_) return x;
  const Tensor image = raw::contiguous(x);
  Tensor out = empty(x.shape(), {.dtype = x.dtype()});
  const int64_t width = x.size(axes.width);
  const int64_t inner = axes.width + 1 < x.dim() ? x.size(axes.width + 1) : 1;
  const int64_t rows = x.numel() == 0 ? 0 : x.numel() / (width * inner);
  dispatch(x.dtype(), [&]<class T>() {
    const T* from = image.data<T>();
    T* to = out.data<T>();
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t w = 0; w < width; ++w)
        std::copy_n(from + (r * width + width - 1 - w) * inner, inner,
                    to + (r * width + w) * inner);
  });
  return out;
}

Lambda::Lambda(std::function<Tensor(const Tensor&)> function) : function_(std::move(function)) {
  check(function_ != nullptr, "lambda: function must be given, got none");
}

Tensor Lambda::apply(const Tensor& x, Generator&) const { return function_(x); }

}  // namespace cairn::data
