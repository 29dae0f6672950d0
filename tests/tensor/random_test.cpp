// Random numbers: the published vectors, the moments, and no dependence on threads or layout.
#include "cairn/tensor/random.h"

#include <algorithm>
#include <cmath>

#include "cairn/tensor/parallel.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/temp_folder.h"
#include "tests/tensor/elements.h"

using namespace cairn;
using test::elements;
using test::error_text;

namespace {

struct Moments {
  double mean = 0;
  double variance = 0;
};

Moments moments(const std::vector<double>& values) {
  Moments m;
  for (double v : values) m.mean += v / static_cast<double>(values.size());
  for (double v : values)
    m.variance += (v - m.mean) * (v - m.mean) / static_cast<double>(values.size());
  return m;
}

}  // namespace

TEST_CASE("tensor: philox gives the published answers") {
  using Block = std::array<uint32_t, 4>;
  // The vectors that come with Random123 for philox4x32, 10 rounds.
  CHECK(philox(0, 0, 0) == Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox(~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}) ==
        Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e) ==
        Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
  CHECK(philox_word(7, 3, 9) == philox(7, 5)[1]);
  static_assert(philox(0, 0)[0] == 0x6627e8d5);  // usable in constants, and so on a GPU
  CHECK(uniform_float(0) == 0.0f);
  CHECK(uniform_float(~0u) < 1.0f);
}

TEST_CASE("tensor: the same seed gives the same numbers on any thread count and layout") {
  const int before = num_threads();
  std::vector<std::vector<double>> runs;
  for (int threads : {1, 2, 4}) {
    set_num_threads(threads);
    Generator g(42);
    const Tensor n = randn({3, 40000}, {}, g);
    const Tensor u = rand({1000}, {.dtype = DType::f64}, g);
    const Tensor i = randint(-5, 5, {1000}, {.dtype = DType::i64}, g);
    auto all = elements(n);
    for (const Tensor& t : {u, i, randperm(1000, g)}) {
      const auto more = elements(t);
      all.insert(all.end(), more.begin(), more.end());
    }
    runs.push_back(all);
  }
  set_num_threads(before);
  CHECK(runs[0] == runs[1]);
  CHECK(runs[0] == runs[2]);

  Generator a(1);
  Generator b(1);
  Tensor plain = empty({2, 3, 4, 5});
  Tensor last = empty_channels_last({2, 3, 4, 5});
  uniform_(plain, 0, 1, a);
  uniform_(last, 0, 1, b);
  CHECK(elements(plain) == elements(last));
}

TEST_CASE("tensor: a weight whose first dimension lies innermost gets the same numbers") {
  // The first is cut into pieces with a rest, rows of the last two are no whole blocks of words.
  for (const Shape& shape :
       {Shape{512, 20, 3, 3}, Shape{6, 36, 3, 3}, Shape{7, 5, 3, 3}, Shape{9, 30}}) {
    for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
      Shape strides = shape;  // the other dimensions in turn, the second before the first
      int64_t next = 1;
      for (const size_t d : {0, 1, 3, 2}) {
        if (d >= shape.size()) continue;
        strides[d] = next;
        next *= shape[d];
      }
      const Tensor plain = empty(shape, {dtype});
      const Tensor upright = empty_strided(shape, strides, {dtype});
      for (const bool normal : {true, false}) {
        Generator a(3), b(3);
        normal ? normal_(plain, 1, 2, a) : uniform_(plain, -1, 1, a);
        normal ? normal_(upright, 1, 2, b) : uniform_(upright, -1, 1, b);
        CHECK((elements(plain) == elements(upright)));
        CHECK(a.offset() == b.offset());
      }
    }
  }
}

TEST_CASE("tensor: narrow draws take one word an element") {
  constexpr uint64_t kSeed = 0x0123456789abcdef, kOffset = 0xfffffff0;  // a carry within the draw
  for (const int64_t n : {1, 2, 3, 5, 33, 1000, 40001}) {
    Generator g;
    g.set_state(kSeed, kOffset);
    const Tensor uniform = rand({n}, {}, g);
    CHECK(g.offset() == kOffset + static_cast<uint64_t>(n + 3) / 4);
    g.set_state(kSeed, kOffset);
    const Tensor z = randn({n}, {}, g);
    g.set_state(kSeed, kOffset);
    const Tensor half = randn({n}, {.dtype = DType::bf16}, g);
    int wrong = 0;
    double worst = 0;
    for (int64_t i = 0; i < n; ++i) {
      const auto word = [&](int64_t k) {
        return philox_word(kSeed, kOffset, static_cast<uint64_t>(k));
      };
      wrong += uniform.data<float>()[i] != uniform_float(word(i));
      // Box and Muller in double on the words of the element's pair; the radius word as f32 has it.
      const float u = static_cast<float>(word(i & ~int64_t{1}) >> 1) * 0x1p-31f;
      const double radius = std::sqrt(-2 * std::log(std::max<double>(u, 0x1p-32)));
      const double angle = 2 * M_PI * static_cast<double>(word(i | 1)) * 0x1p-32;
      const double wanted = radius * (i % 2 == 0 ? std::cos(angle) : std::sin(angle));
      const float got = z.data<float>()[i];
      if (radius > 0) worst = std::max(worst, std::abs(got - wanted) / radius);
      wrong += half.data<bfloat16>()[i].bits != bfloat16(got).bits;
    }
    CHECK(wrong == 0);
    CHECK(worst <
          8 * 0x1p-24);  // the logarithm's 4 ulp halve in the root; two for sine and product
  }
}

TEST_CASE("tensor: a generator goes on where its state says") {
  Generator a(9);
  rand({13}, {}, a);
  Generator b;
  b.set_state(a.seed(), a.offset());
  CHECK(elements(rand({5}, {}, a)) == elements(rand({5}, {}, b)));
  manual_seed(3);
  const auto first = elements(rand({4}));
  CHECK(elements(rand({4})) != first);
  manual_seed(3);
  CHECK(elements(rand({4})) == first);
}

TEST_CASE("tensor: random numbers have the moments they should") {
  // 200,000 draws: the mean's own deviation is 1/sqrt(n) = 0.0022 standard deviations; 5 of them.
  constexpr int64_t n = 200'000;
  const double slack = 5 / std::sqrt(static_cast<double>(n));
  Generator g(123);
  const auto normal = moments(elements(randn({n}, {.dtype = DType::f64}, g)));
  CHECK(std::abs(normal.mean) < slack);
  CHECK(std::abs(normal.variance - 1) < slack * std::sqrt(2.0));
  const auto uniform = elements(rand({n}, {}, g));
  CHECK(std::abs(moments(uniform).mean - 0.5) < slack * std::sqrt(1.0 / 12));
  CHECK(*std::min_element(uniform.begin(), uniform.end()) >= 0);
  const auto whole = elements(randint(0, 10, {n}, {.dtype = DType::i64}, g));
  for (int digit = 0; digit < 10; ++digit) {
    const auto count = static_cast<double>(std::count(whole.begin(), whole.end(), digit));
    CHECK(std::abs(count / n - 0.1) < slack * 0.3);  // sqrt(0.1 * 0.9) = 0.3
  }
  auto order = elements(randperm(1000, g));
  std::sort(order.begin(), order.end());
  CHECK(order == elements(arange(0, 1000)));
}

TEST_CASE("tensor: random draws say what is wrong") {
  CHECK(error_text([] {
          Tensor t = zeros({2}, {.dtype = DType::i64});
          uniform_(t);
        }) == "uniform_: dtype must be floating, got i64");
  CHECK(error_text([] { uniform_(zeros({2}), 1, 0); }) ==
        "uniform_: low and high must be finite with low <= high, got 1 and 0");
  CHECK(error_text([] { normal_(zeros({2}), 0, -1); }) ==
        "normal_: std must not be negative, got -1");
  CHECK(error_text([] { randint(3, 3, {1}); }) == "randint: low must be below high, got 3 and 3");
  CHECK(error_text([] { randperm(-1); }) == "randperm: n must not be negative, got -1");
  CHECK(error_text([] {
          uniform_(raw::expand(empty({1, 8}), {1000, 8}));
        }) == "uniform_: tensor must not be expanded, got strides [0, 1]");
  CHECK(rand({0}).numel() == 0);
  CHECK(randperm(0).numel() == 0);
}
