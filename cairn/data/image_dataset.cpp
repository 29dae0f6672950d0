// Byte images: the table lookup over a batch, and labels.
// Invariant: see image_dataset.h.
#include "cairn/data/image_dataset.h"

#include <algorithm>
#include <utility>

#include "cairn/tensor/factory.h"
#include "cairn/tensor/raw.h"

namespace cairn::data {
namespace {

// One channel of one image through its 256 values.
void look_up_plane(const uint8_t* from, int64_t height, int64_t width, int64_t row_stride,
                   int64_t column_stride, const float* table, float* to) {
  if (column_stride == 1 && row_stride == width) {
    const int64_t pixels = height * width;
    for (int64_t i = 0; i < pixels; ++i) to[i] = table[from[i]];
    return;
  }
  for (int64_t h = 0; h < height; ++h)
    for (int64_t w = 0; w < width; ++w) *to++ = table[from[h * row_stride + w * column_stride]];
}

// Shuffled images lie anywhere in a set larger than the caches, so the next one is asked for while
// the current one is worked on (twice as fast as without). Past a page the hardware does it.
void prefetch_image(const uint8_t* image, int64_t bytes) {
  constexpr int64_t kCacheLine = 64;
  constexpr int64_t kPage = 4096;
  for (int64_t at = 0; at < std::min(bytes, kPage); at += kCacheLine)
    __builtin_prefetch(image + at);
}

}  // namespace

ImageDataset::ImageDataset(Tensor images, Tensor targets, Compose transform,
                           std::vector<std::string> classes)
    : images_(std::move(images)),
      targets_(std::move(targets)),
      transform_(std::move(transform)),
      classes_(std::move(classes)) {
  check(images_.defined() && targets_.defined(),
        "image_dataset: images and targets must be defined, got none");
  check(images_.dtype() == DType::u8 && images_.device() == kCPU &&
            (images_.dim() == 3 || images_.dim() == 4),
        "image_dataset: images must be u8 [N, H, W] or [N, H, W, C] on cpu, got ", images_.dtype(),
        " ", images_.shape(), " on ", images_.device());
  check(targets_.dtype() == DType::i64 && targets_.device() == kCPU && targets_.dim() == 1 &&
            targets_.size(0) == images_.size(0),
        "image_dataset: targets must be i64 [", images_.size(0), "] on cpu, got ", targets_.dtype(),
        " ", targets_.shape(), " on ", targets_.device());
  targets_ = raw::contiguous(targets_);
  auto table = std::make_shared<ByteTable>(images_.dim() == 4 ? images_.size(3) : 1);
  if (transform_.fold(*table) && table->scaled) table_ = std::move(table);
}

Sample ImageDataset::get_random(int64_t index, const DrawKey& key) const {
  check_index(index, size(), "image_dataset");
  Generator generator = key.generator(index);
  return {transform_.apply(raw::select(images_, 0, index), generator),
          raw::select(targets_, 0, index)};
}

bool ImageDataset::collate(std::span<const int64_t> indices, const DrawKey&, Batch& batch) const {
  if (table_ == nullptr) return false;
  const auto count = static_cast<int64_t>(indices.size());
  const int64_t channels = table_->channels;
  const int64_t height = images_.size(1);
  const int64_t width = images_.size(2);
  const int64_t channel_stride = images_.dim() == 4 ? images_.stride(3) : 0;
  batch.input = empty({count, channels, height, width});
  batch.target = empty({count}, {.dtype = DType::i64});
  float* to = batch.input.data<float>();
  int64_t* label = batch.target.data<int64_t>();
  const uint8_t* images = images_.data<uint8_t>();
  const int64_t* labels = targets_.data<int64_t>();
  for (size_t i = 0; i < indices.size(); ++i) {
    const int64_t index = indices[i];
    const uint8_t* image = images + index * images_.stride(0);
    if (i + 1 < indices.size())
      prefetch_image(images + indices[i + 1] * images_.stride(0), channels * height * width);
    for (int64_t c = 0; c < channels; ++c) {
      look_up_plane(image + c * channel_stride, height, width, images_.stride(1), images_.stride(2),
                    table_->values.data() + c * 256, to);
      to += height * width;
    }
    *label++ = labels[index];
  }
  return true;
}

Tensor make_targets(const Tensor& labels, int64_t class_count, const char* op,
                    const std::function<int64_t(int64_t)>& transform) {
  check(labels.dtype() == DType::u8 && labels.dim() == 1, op, ": labels must be u8 [N], got ",
        labels.dtype(), " ", labels.shape());
  Tensor targets = empty(labels.shape(), {.dtype = DType::i64});
  const uint8_t* from = labels.data<uint8_t>();
  const int64_t stride = labels.stride(0);
  int64_t* to = targets.data<int64_t>();
  for (int64_t i = 0; i < labels.numel(); ++i) {
    const int64_t label = from[i * stride];
    check(label < class_count, op, ": label of image ", i, " must be below ", class_count, ", got ",
          label);
    to[i] = transform ? transform(label) : label;
  }
  return targets;
}

}  // namespace cairn::data
