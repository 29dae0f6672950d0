// Image transforms: from a sample's tensor to the network's input.
// Invariant: a transform has no state that changes, and draws only from the generator it is given.
//
// Layout follows the dtype: a u8 image is [H, W] or [H, W, C], as decoders deliver it; a floating
// image is [C, H, W] or [H, W], as networks take it. ToTensor leads from the one to the other.
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "cairn/tensor/random.h"
#include "cairn/tensor/tensor.h"

namespace cairn::data {

// A transform of u8 images to f32 [C, H, W] that works on each byte by itself.
struct ByteTable {
  explicit ByteTable(int64_t channel_count);

  int64_t channels;
  std::vector<float> values;  // [channels, 256]: what each byte of each channel becomes
  bool scaled = false;        // ToTensor has been folded in
};

class Transform {
 public:
  virtual ~Transform() = default;

  virtual Tensor apply(const Tensor& x, Generator& generator) const = 0;
  // Adds this transform to a table and returns true, where it works on each element by itself; the
  // values must be bitwise those of apply().
  virtual bool fold(ByteTable& table) const;

  Tensor operator()(const Tensor& x, Generator& generator = default_generator()) const {
    return apply(x, generator);
  }
};

// Transforms one after another. A value: copies share the steps, which never change.
class Compose : public Transform {
 public:
  Compose() = default;
  template <class... T>
  requires(std::derived_from<std::remove_cvref_t<T>, Transform>&&...) &&
      (!(sizeof...(T) == 1 && (std::same_as<std::remove_cvref_t<T>, Compose> && ...)))
          Compose(T&&... steps)  // implicit, so that `.transform = ToTensor()` works
      : steps_{std::make_shared<const std::remove_cvref_t<T>>(std::forward<T>(steps))...} {}
  explicit Compose(std::vector<std::shared_ptr<const Transform>> steps);

  Tensor apply(const Tensor& x, Generator& generator) const override;
  bool fold(ByteTable& table) const override;
  bool empty() const { return steps_.empty(); }

 private:
  std::vector<std::shared_ptr<const Transform>> steps_;
};

// u8 [H, W] or [H, W, C] to f32 [C, H, W] (C = 1 for [H, W]), divided by 255.
class ToTensor : public Transform {
 public:
  Tensor apply(const Tensor& x, Generator& generator) const override;
  bool fold(ByteTable& table) const override;
};

// (x - mean[c]) / std[c] on f32 [C, H, W], in f32. One mean and one std per channel, finite, std
// not 0, else Error.
class Normalize : public Transform {
 public:
  Normalize(std::vector<float> mean, std::vector<float> std);
  Tensor apply(const Tensor& x, Generator& generator) const override;
  bool fold(ByteTable& table) const override;

 private:
  std::vector<float> mean_;
  std::vector<float> std_;
};

struct RandomCropOptions {
  int64_t size = 0;     // pixels, height and width
  int64_t padding = 0;  // zeros put on each side first
};

// A square cut at a random place, every place equally likely.
class RandomCrop : public Transform {
 public:
  explicit RandomCrop(RandomCropOptions options);
  Tensor apply(const Tensor& x, Generator& generator) const override;

 private:
  RandomCropOptions options_;
};

// Mirrors left to right with probability p.
class RandomHorizontalFlip : public Transform {
 public:
  explicit RandomHorizontalFlip(double p = 0.5);
  Tensor apply(const Tensor& x, Generator& generator) const override;

 private:
  double p_;
};

// A function of the caller; it must be callable from several threads at once.
class Lambda : public Transform {
 public:
  explicit Lambda(std::function<Tensor(const Tensor&)> function);
  Tensor apply(const Tensor& x, Generator& generator) const override;

 private:
  std::function<Tensor(const Tensor&)> function_;
};

}  // namespace cairn::data
