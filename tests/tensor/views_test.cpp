// Views and moves: every result against plain index arithmetic.
#include <cmath>
#include <numeric>

#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/temp_folder.h"
#include "tests/tensor/elements.h"

using namespace cairn;
using test::elements;
using test::error_text;

namespace {

// 0, 1, 2, … in this shape.
Tensor counting(const Shape& shape, DType dtype = DType::f32) {
  const int64_t n = numel_of(shape);
  return raw::to(raw::view(arange(0, static_cast<double>(n)), shape), dtype);
}

using Values = std::vector<double>;

// A deterministic stream of small numbers.
struct Dice {
  uint64_t state = 1;
  int64_t below(int64_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int64_t>((state >> 33) % static_cast<uint64_t>(n));
  }
};

// A random view of a random dense tensor: permuted, sliced, sometimes expanded.
Tensor random_view(Dice& dice, DType dtype) {
  Shape shape;
  const int64_t rank = dice.below(5);
  for (int64_t i = 0; i < rank; ++i) shape.push_back(dice.below(6));
  Tensor t = counting(shape, dtype);
  for (int move = 0; move < 3 && t.dim() > 0; ++move) {
    const int64_t d = dice.below(t.dim());
    switch (dice.below(4)) {
      case 0:
        t = raw::transpose(t, d, dice.below(t.dim()));
        break;
      case 1:
        t = raw::slice(t, d, dice.below(3), 6 - dice.below(3), 1 + dice.below(2));
        break;
      case 2:
        t = raw::unsqueeze(t, d);
        break;
      default:
        if (t.size(d) == 1) {
          Shape wide = t.shape();
          wide[static_cast<size_t>(d)] = 3;
          t = raw::expand(t, wide);
        }
    }
  }
  return t;
}

}  // namespace

TEST_CASE("tensor: views share memory and say where elements lie") {
  const Tensor t = counting({2, 3, 4});
  const Tensor p = raw::permute(t, {2, 0, -2});
  CHECK(p.shape() == Shape{4, 2, 3});
  CHECK(p.strides() == Shape{1, 12, 4});
  CHECK(p.storage() == t.storage());
  CHECK(elements(raw::select(t, 1, -1)) == Values{8, 9, 10, 11, 20, 21, 22, 23});
  CHECK(elements(raw::slice(t, -1, 1, 100, 2)) ==
        Values{1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23});
  CHECK(raw::slice(t, 0, 5, 9).shape() == Shape{0, 3, 4});
  CHECK(raw::slice(t, 2, -2, -1).shape() == Shape{2, 3, 1});
  CHECK(raw::slice(t, 2, 3, 1).numel() == 0);
  CHECK(elements(raw::expand(raw::slice(t, 0, 0, 1), {2, -1, 4})).size() == 24);
  CHECK(raw::squeeze(raw::unsqueeze(t, -1)).shape() == t.shape());
  CHECK(raw::squeeze(t, 1).shape() == t.shape());
  CHECK(raw::flatten(t, 1).shape() == Shape{2, 12});
  CHECK(raw::flatten(scalar_tensor(1)).shape() == Shape{1});
  CHECK(elements(raw::as_strided(t, {2, 2}, {5, 1}, 3)) == Values{3, 4, 8, 9});
  CHECK(raw::view(t, {-1, 6}).shape() == Shape{4, 6});
  raw::fill_(raw::select(p, 0, 0), -1);
  CHECK(elements(raw::select(t, 2, 0)) == Values(6, -1));
}

TEST_CASE("tensor: views say what is wrong") {
  const Tensor t = counting({2, 3, 4});
  const auto text = [&](auto call) { return error_text([&] { call(); }); };
  CHECK(text([&] { raw::view(t, {5, -1}); }) == "view: shape must hold 24 elements, got [5, -1]");
  CHECK(text([&] {
          raw::view(t, {-1, -1});
        }) == "view: shape must have at most one -1, got [-1, -1]");
  CHECK(text([&] { raw::view(t, {0, -1}); }) == "view: shape must hold 24 elements, got [0, -1]");
  CHECK(text([&] { raw::view(raw::transpose(t, 0, 1), {24}); }) ==
        "view: shape must fit the layout, got [24] for a tensor of shape [3, 2, 4] and strides "
        "[4, 12, 1]; use reshape");
  CHECK(text([&] {
          raw::permute(t, {0, 1});
        }) == "permute: dims must name each of 3 dimensions once, got [0, 1]");
  CHECK(text([&] {
          raw::permute(t, {0, 1, -2});
        }) == "permute: dims must name each dimension once, got [0, 1, -2]");
  CHECK(text([&] { raw::select(t, 0, 2); }) ==
        "select: index must be in [-2, 2) of dimension 0, got 2");
  CHECK(text([&] { raw::slice(t, 0, 0, 2, 0); }) == "slice: step must be at least 1, got 0");
  CHECK(text([&] { raw::slice(scalar_tensor(1), 0, 0, 1); }) ==
        "slice: input must have a dimension, got a 0-d tensor");
  CHECK(text([&] {
          raw::expand(t, {4, 3, 4});
        }) == "expand: shape must match [2, 3, 4] where its size is not 1, got [4, 3, 4]");
  CHECK(text([&] { raw::as_strided(t, {2}, {24}, 0); }) ==
        "tensor: view must lie inside its storage of 24 elements, got offset 0, shape [2], strides "
        "[24]");
  CHECK(text([&] { raw::as_strided(t, {2}, {1}, -1); }).find("got offset -1") != std::string::npos);
  CHECK(text([&] { t.item(); }) == "item: tensor must have one element, got shape [2, 3, 4]");
  CHECK(text([&] { raw::copy_(t, counting({5})); }) ==
        "expand: shape must match [5] where its size is not 1, got [2, 3, 4]");
}

TEST_CASE("tensor: size 0 and 0-d work in every view and move") {
  for (const Shape& shape : {Shape{0}, Shape{2, 0}, Shape{0, 3, 1, 2}}) {
    const Tensor t = empty(shape);
    CHECK(t.numel() == 0);
    CHECK(t.is_contiguous());
    CHECK(t.is_dense());
    CHECK(raw::clone(t).shape() == shape);
    CHECK(raw::to(t, DType::i64).shape() == shape);
    CHECK(raw::transpose(t, 0, -1).numel() == 0);
    CHECK(raw::reshape(t, {0, 7}).shape() == Shape{0, 7});
    CHECK(raw::slice(t, 0, 0, 9).numel() == 0);
    raw::fill_(t, 1);
    raw::copy_(t, scalar_tensor(1));
  }
  CHECK(raw::expand(empty({1, 0}), {3, 0}).shape() == Shape{3, 0});
  CHECK(error_text([] {
          raw::view(empty({0}), {-1, 0});
        }) == "view: shape must hold 0 elements, got [-1, 0]");
  CHECK(raw::channels_last(empty({0, 3, 2, 2})).shape() == Shape{0, 3, 2, 2});

  const Tensor s = scalar_tensor(5);
  CHECK(raw::transpose(s, 0, 0).dim() == 0);
  CHECK(raw::permute(s, {}).item() == 5);
  CHECK(raw::unsqueeze(s, -1).shape() == Shape{1});
  CHECK(raw::squeeze(s, 0).dim() == 0);
  CHECK(raw::view(s, {1, 1}).shape() == Shape{1, 1});
  CHECK(raw::view(ones({1, 1}), {}).dim() == 0);
  CHECK(elements(raw::expand(s, {2, 2})) == Values{5, 5, 5, 5});
  CHECK(raw::clone(s).item<int>() == 5);
}

TEST_CASE("tensor: layouts are recognised") {
  const Tensor t = counting({2, 3, 4, 5});
  CHECK(t.is_contiguous());
  CHECK_FALSE(t.is_channels_last());
  const Tensor c = raw::channels_last(t);
  CHECK(c.is_channels_last());
  CHECK_FALSE(c.is_contiguous());
  CHECK(c.is_dense());
  CHECK(elements(c) == elements(t));
  CHECK(raw::channels_last(c).same_as(c));
  CHECK(raw::contiguous(t).same_as(t));
  CHECK(raw::clone(c).is_channels_last());
  CHECK(raw::to(c, DType::f64).is_channels_last());
  const Tensor gaps = raw::slice(t, 3, 0, 5, 2);
  CHECK_FALSE(gaps.is_dense());
  CHECK(raw::clone(gaps).is_contiguous());
  CHECK_FALSE(raw::expand(ones({1, 3}), {2, 3}).is_dense());
  const Tensor thin = counting({2, 1, 4, 5});  // one channel: both layouts at once
  CHECK(thin.is_contiguous());
  CHECK(thin.is_channels_last());
}

TEST_CASE("tensor: random views are copied, reshaped and flattened right") {
  Dice dice;
  for (int round = 0; round < 400; ++round) {
    const Tensor t = random_view(dice, static_cast<DType>(dice.below(kDTypeCount)));
    INFO(round << ": shape " << cat(t.shape()) << " strides " << cat(t.strides()));
    const Values expected = elements(t);
    CHECK(static_cast<int64_t>(expected.size()) == t.numel());
    CHECK(elements(raw::contiguous(t)) == expected);
    CHECK(elements(raw::clone(t)) == expected);
    CHECK(elements(raw::reshape(t, {t.numel()})) == expected);
    if (t.numel() % 2 == 0 && t.numel() > 0)
      CHECK(elements(raw::reshape(t, {2, -1, 1})) == expected);
    Shape strides;
    Shape merged{t.numel()};
    if (raw::view_strides(t, merged, strides)) CHECK(elements(raw::view(t, merged)) == expected);
    // Into a destination with a layout of its own.
    Tensor target = zeros(t.shape(), {.dtype = t.dtype()});
    if (t.dim() > 1) {
      Shape swapped = t.shape();
      std::swap(swapped[0], swapped[swapped.size() - 1]);
      target = raw::transpose(zeros(swapped, {.dtype = t.dtype()}), 0, -1);
    }
    raw::copy_(target, t);
    CHECK(elements(target) == expected);
  }
}

TEST_CASE("tensor: copies convert between all dtypes") {
  const Values samples{0, 1, -1, 2.5, -2.5, 127, 200, 255, 1e6, -0.25};
  for (int i = 0; i < kDTypeCount; ++i) {
    for (int j = 0; j < kDTypeCount; ++j) {
      const auto from = static_cast<DType>(i);
      const auto to = static_cast<DType>(j);
      if (from == DType::u8 || to == DType::u8) continue;  // below: its range is narrow
      const Tensor source = raw::to(from_values(samples, {10}), from);
      const Values given = elements(source);
      Values expected;
      for (double v : given) {
        if (to == DType::boolean)
          expected.push_back(v != 0 ? 1 : 0);
        else if (is_integral(to))
          expected.push_back(std::isfinite(v) ? std::trunc(v) + 0.0 : 0);
        else if (to == DType::f64)
          expected.push_back(v);
        else if (to == DType::f32)
          expected.push_back(static_cast<float>(v));
        else if (to == DType::bf16)
          expected.push_back(static_cast<float>(bfloat16(v)));
        else
          expected.push_back(static_cast<float>(float16(v)));
      }
      INFO(cat(from, " to ", to));
      CHECK(elements(raw::to(source, to)) == expected);
    }
  }
  const Tensor bytes = raw::to(from_values(Values{0, 1, 200, 255, 2.5}, {5}), DType::u8);
  CHECK(elements(bytes) == Values{0, 1, 200, 255, 2});
  for (DType to : {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i64, DType::i32})
    CHECK(elements(raw::to(bytes, to)) == Values{0, 1, 200, 255, 2});
  // What has no integer becomes 0 and is not undefined behaviour.
  CHECK(elements(raw::to(from_values(Values{NAN, INFINITY, -1e300}, {3}), DType::i64)) ==
        Values{0, 0, 0});
  CHECK(elements(raw::to(from_values(Values{NAN, 0.5, -0.0}, {3}), DType::boolean)) ==
        Values{1, 1, 0});
}

TEST_CASE("tensor: items keep all 64 bits of an integer") {
  const int64_t big = (int64_t{1} << 62) + 1;
  CHECK(from_values(std::vector<int64_t>{big}, {1}).item<int64_t>() == big);
  CHECK(scalar_tensor(2.75).item<double>() == 2.75);
  CHECK(scalar_tensor(0.5).item<bool>());
}

TEST_CASE("tensor: copies of a handle are one tensor, aliases are not") {
  const Tensor t = ones({2});
  const Tensor same = t;
  CHECK(same.same_as(t));
  CHECK_FALSE(t.alias().same_as(t));
  CHECK(t.alias().storage() == t.storage());
  t.set_data(full({2}, 3));
  CHECK(elements(same) == Values{3, 3});
  CHECK(error_text([&] { t.set_data(ones({3})); }) ==
        "set_data: data must be f32 [2], got f32 [3]");
}
