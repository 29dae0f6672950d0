// Shapes and strides: up to kMaxRank int64 values held inline.
// Invariant: no heap memory; sizes are never negative and their product never overflows int64.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "cairn/tensor/error.h"

namespace cairn {

constexpr int kMaxRank = 8;

// A short list of int64 values: a shape, strides, or a list of dimensions.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> values) { assign(values.begin(), values.size()); }
  explicit Shape(std::span<const int64_t> values) { assign(values.data(), values.size()); }
  Shape(size_t rank, int64_t value) {
    resize(rank);
    std::fill(begin(), end(), value);
  }

  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  int64_t& operator[](size_t i) { return values_[i]; }
  int64_t operator[](size_t i) const { return values_[i]; }
  int64_t* begin() { return values_.data(); }
  int64_t* end() { return values_.data() + size_; }
  const int64_t* begin() const { return values_.data(); }
  const int64_t* end() const { return values_.data() + size_; }
  int64_t back() const { return values_[size_ - 1]; }
  void resize(size_t rank) {
    check(rank <= kMaxRank, "shape: rank must be at most ", kMaxRank, ", got ", rank);
    size_ = static_cast<uint8_t>(rank);
  }
  void push_back(int64_t value) {
    resize(size_ + 1u);
    values_[size_ - 1u] = value;
  }
  void insert(size_t at, int64_t value) {
    resize(size_ + 1u);
    std::copy_backward(begin() + at, end() - 1, end());
    values_[at] = value;
  }
  void erase(size_t at) {
    std::copy(begin() + at + 1, end(), begin() + at);
    --size_;
  }
  operator std::span<const int64_t>() const { return {begin(), size_}; }
  bool operator==(const Shape& other) const {
    // A loop: for a handful of values, often just written, a call of memcmp takes longer.
    if (size_ != other.size_) return false;
    for (size_t i = 0; i < size_; ++i)
      if (values_[i] != other.values_[i]) return false;
    return true;
  }

 private:
  void assign(const int64_t* values, size_t count) {
    resize(count);
    std::copy_n(values, count, values_.begin());
  }

  std::array<int64_t, kMaxRank> values_{};
  uint8_t size_ = 0;
};

// "[2, 3]"
void append_text(std::string& out, const Shape& shape);

// a*b and a+b of sizes; throw Error "op: size overflows …" past int64.
int64_t checked_mul(int64_t a, int64_t b, const char* op);
int64_t checked_add(int64_t a, int64_t b, const char* op);

// Product of the sizes; 1 for the empty shape. Negative sizes and overflow throw, naming `op`.
int64_t numel_of(const Shape& shape, const char* op = "shape");

// What a strided layout covers: its elements, and one more than its largest offset (0 when empty).
struct Extent {
  int64_t numel = 0;
  int64_t span = 0;
};
// Negative sizes and strides, lists of different lengths and overflow throw, naming `op`.
Extent extent_of(const Shape& shape, const Shape& strides, const char* op);

// Row-major strides in elements. Never throws: sizes that are no shape give strides that are no
// layout.
Shape contiguous_strides(const Shape& shape);
// NHWC byte order for a logical [N, C, H, W] shape.
Shape channels_last_strides(const Shape& shape);

// Maps a dimension in [-rank, rank) to [0, rank); rank 0 counts as rank 1. Throws naming `op`.
int64_t wrap_dim(int64_t dim, int64_t rank, const char* op);

// NumPy broadcasting of two shapes; throws `op: shapes must broadcast, got [..] and [..]`.
Shape broadcast_shapes(const Shape& a, const Shape& b, const char* op);

}  // namespace cairn
