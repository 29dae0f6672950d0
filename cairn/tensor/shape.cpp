// Shape arithmetic with overflow checks.
#include "cairn/tensor/shape.h"

namespace cairn {

void append_text(std::string& out, const Shape& shape) {
  out += '[';
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) out += ", ";
    out += std::to_string(shape[i]);
  }
  out += ']';
}

int64_t checked_mul(int64_t a, int64_t b, const char* op) {
  int64_t result = 0;
  check(!__builtin_mul_overflow(a, b, &result), op, ": size must fit in 63 bits, got ", a, " x ",
        b);
  return result;
}

int64_t checked_add(int64_t a, int64_t b, const char* op) {
  int64_t result = 0;
  check(!__builtin_add_overflow(a, b, &result), op, ": size must fit in 63 bits, got ", a, " + ",
        b);
  return result;
}

int64_t numel_of(const Shape& shape, const char* op) {
  // The product over the non-zero sizes is checked too, so that a size of 0 hides no overflow of
  // the strides.
  int64_t count = 1;
  bool empty = false;
  for (int64_t size : shape) {
    check(size >= 0, op, ": sizes must not be negative, got ", shape);
    if (size == 0)
      empty = true;
    else
      count = checked_mul(count, size, op);
  }
  return empty ? 0 : count;
}

namespace {

// As extent_of, with a check of each step.
Extent checked_extent(const Shape& shape, const Shape& strides, const char* op) {
  check(shape.size() == strides.size(), op, ": strides must have one entry per dimension of ",
        shape, ", got ", strides);
  const int64_t numel = numel_of(shape, op);
  int64_t last = 0;
  for (size_t i = 0; i < shape.size(); ++i) {
    check(strides[i] >= 0, op, ": strides must not be negative, got ", strides);
    if (numel > 0) last = checked_add(last, checked_mul(shape[i] - 1, strides[i], op), op);
  }
  return {numel, numel > 0 ? checked_add(last, 1, op) : 0};
}

}  // namespace

Extent extent_of(const Shape& shape, const Shape& strides, const char* op) {
  int64_t numel = 1, span = 1;
  bool usual = shape.size() == strides.size();
  for (size_t i = 0; usual && i < shape.size(); ++i) {
    int64_t reach = 0;
    usual = shape[i] > 0 && strides[i] >= 0 && !__builtin_mul_overflow(numel, shape[i], &numel) &&
            !__builtin_mul_overflow(shape[i] - 1, strides[i], &reach) &&
            !__builtin_add_overflow(span, reach, &span);
  }
  return usual ? Extent{numel, span} : checked_extent(shape, strides, op);
}

Shape contiguous_strides(const Shape& shape) {
  Shape strides;
  strides.resize(shape.size());
  uint64_t step = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = static_cast<int64_t>(step);
    step *= static_cast<uint64_t>(std::max<int64_t>(shape[i], 1));
  }
  return strides;
}

Shape channels_last_strides(const Shape& shape) {
  check(shape.size() == 4, "channels_last: input must be 4-d [N, C, H, W], got ", shape);
  const int64_t c = std::max<int64_t>(shape[1], 1);
  const int64_t h = std::max<int64_t>(shape[2], 1);
  const int64_t w = std::max<int64_t>(shape[3], 1);
  return {h * w * c, 1, w * c, c};
}

int64_t wrap_dim(int64_t dim, int64_t rank, const char* op) {
  const int64_t limit = std::max<int64_t>(rank, 1);
  check(dim >= -limit && dim < limit, op, ": dim must be in [", -limit, ", ", limit - 1, "], got ",
        dim);
  return dim < 0 ? dim + limit : dim;
}

Shape broadcast_shapes(const Shape& a, const Shape& b, const char* op) {
  const size_t rank = std::max(a.size(), b.size());
  Shape out(rank, 1);
  for (size_t i = 0; i < rank; ++i) {
    const int64_t x = i < rank - a.size() ? 1 : a[i - (rank - a.size())];
    const int64_t y = i < rank - b.size() ? 1 : b[i - (rank - b.size())];
    check(x == y || x == 1 || y == 1, op, ": shapes must broadcast, got ", a, " and ", b);
    out[i] = x == 1 ? y : x;
  }
  return out;
}

}  // namespace cairn
