// Shapes, sizes that overflow, dtypes and devices.
#include "cairn/tensor/shape.h"

#include <bit>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "cairn/autograd/ops/elementwise.h"
#include "cairn/tensor/factory.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/temp_folder.h"
#include "tests/tensor/elements.h"

using namespace cairn;
using test::error_text;

namespace {
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
}

TEST_CASE("tensor: a shape holds up to eight sizes") {
  Shape s{2, 3};
  s.push_back(4);
  s.insert(0, 9);
  CHECK(s == Shape{9, 2, 3, 4});
  s.erase(1);
  CHECK(s == Shape{9, 3, 4});
  CHECK(cat(s) == "[9, 3, 4]");
  CHECK(cat(Shape{}) == "[]");
  CHECK_FALSE(Shape{1} == Shape{1, 1});
  CHECK(error_text([] { Shape{1, 1, 1, 1, 1, 1, 1, 1, 1}; }) ==
        "shape: rank must be at most 8, got 9");
}

TEST_CASE("tensor: strides of both layouts") {
  CHECK(contiguous_strides({2, 3, 4}) == Shape{12, 4, 1});
  CHECK(contiguous_strides({}) == Shape{});
  CHECK(contiguous_strides({2, 0, 4}) == Shape{4, 4, 1});
  CHECK(channels_last_strides({2, 3, 4, 5}) == Shape{60, 1, 15, 3});
  CHECK(error_text([] {
          channels_last_strides({2, 3});
        }) == "channels_last: input must be 4-d [N, C, H, W], got [2, 3]");
}

TEST_CASE("tensor: sizes that overflow or are negative are errors") {
  CHECK(numel_of({}) == 1);
  CHECK(numel_of({3, 0, 5}) == 0);
  CHECK(numel_of({kMax}) == kMax);
  CHECK(error_text([] {
          numel_of({int64_t{1} << 32, int64_t{1} << 31}, "zeros");
        }) == "zeros: size must fit in 63 bits, got 4294967296 x 2147483648");
  // A zero hides no overflow: strides are products too.
  CHECK(error_text([] {
          numel_of({0, kMax, 2}, "zeros");
        }) == "zeros: size must fit in 63 bits, got 9223372036854775807 x 2");
  CHECK(error_text([] {
          numel_of({2, -1}, "zeros");
        }) == "zeros: sizes must not be negative, got [2, -1]");
  CHECK(error_text([] { empty({int64_t{1} << 61}, {.dtype = DType::f64}); }) ==
        "empty: size must fit in 63 bits, got 2305843009213693952 x 8");
  CHECK(error_text([] { empty({int64_t{1} << 57}, {.dtype = DType::u8}); }) ==
        "allocate: size must be at most 2^56 bytes, got 144115188075855872");
  CHECK(error_text([] {
          empty_strided({3, 3}, {kMax, 1});
        }) == "empty: size must fit in 63 bits, got 2 x 9223372036854775807");
  CHECK(error_text([] {
          raw::expand(ones({1}), {kMax, kMax});
        }) == "tensor: size must fit in 63 bits, got 9223372036854775807 x 9223372036854775807");
  CHECK(error_text([] {
          raw::view(ones({4}), {kMax, 4, -1});
        }) == "view: size must fit in 63 bits, got 9223372036854775807 x 4");
  CHECK(error_text([] { empty({-3}); }) == "empty: sizes must not be negative, got [-3]");
  CHECK(error_text([] { arange(0, 1e18, 1e-3); }) == "arange: size must fit in 53 bits, got 1e+21");
  CHECK(error_text([] { arange(0, 1, 0); }) ==
        "arange: start, end and a non-zero step must be finite, got 0, 1, 0");
}

TEST_CASE("tensor: dimensions count from both ends") {
  CHECK(wrap_dim(-1, 3, "op") == 2);
  CHECK(wrap_dim(0, 0, "op") == 0);
  CHECK(wrap_dim(-1, 0, "op") == 0);
  CHECK(error_text([] { wrap_dim(3, 3, "sum"); }) == "sum: dim must be in [-3, 2], got 3");
  CHECK(error_text([] { wrap_dim(-2, 0, "sum"); }) == "sum: dim must be in [-1, 0], got -2");
}

TEST_CASE("tensor: shapes broadcast as NumPy's") {
  CHECK(broadcast_shapes({2, 1, 4}, {3, 1}, "add") == Shape{2, 3, 4});
  CHECK(broadcast_shapes({}, {3}, "add") == Shape{3});
  CHECK(broadcast_shapes({0}, {1}, "add") == Shape{0});
  CHECK(error_text([] {
          broadcast_shapes({2, 3}, {2, 4}, "add");
        }) == "add: shapes must broadcast, got [2, 3] and [2, 4]");
  CHECK(error_text([] { broadcast_shapes({0}, {2}, "add"); }) ==
        "add: shapes must broadcast, got [0] and [2]");
}

TEST_CASE("tensor: dtypes promote as PyTorch's") {
  std::ifstream in(std::string(CAIRN_SOURCE_DIR) + "/tests/parity/promotion.json");
  const auto rows = nlohmann::json::parse(in)["tensor_tensor"];
  REQUIRE(rows.size() == 64);
  for (const auto& row : rows)
    CHECK(promote_types(parse_dtype(row[0].get<std::string>()),
                        parse_dtype(row[1].get<std::string>())) ==
          parse_dtype(row[2].get<std::string>()));
}

TEST_CASE("tensor: dtype names and sizes") {
  const int64_t sizes[] = {8, 4, 2, 2, 8, 4, 1, 1};
  for (int i = 0; i < kDTypeCount; ++i) {
    const auto dtype = static_cast<DType>(i);
    CHECK(parse_dtype(name_of(dtype)) == dtype);
    CHECK(item_size(dtype) == sizes[i]);
  }
  CHECK(error_text([] { parse_dtype("f8"); }) ==
        "dtype: name must be one of f64 f32 bf16 f16 i64 i32 u8 bool, got 'f8'");
  CHECK(error_text([] { ones({2}).data<double>(); }) == "data: dtype must be f64, got f32");
}

TEST_CASE("tensor: bfloat16 rounds to nearest even and keeps NaN and infinity") {
  const auto bits = [](float v) { return bfloat16(v).bits; };
  CHECK(bits(1.0f) == 0x3f80);
  CHECK(bits(-0.0f) == 0x8000);
  CHECK(bits(std::bit_cast<float>(0x3f808000u)) == 0x3f80);  // half way, even below
  CHECK(bits(std::bit_cast<float>(0x3f818000u)) == 0x3f82);  // half way, even above
  CHECK(bits(std::bit_cast<float>(0x3f808001u)) == 0x3f81);
  CHECK(bits(std::bit_cast<float>(0x3f807fffu)) == 0x3f80);
  CHECK(bits(std::numeric_limits<float>::max()) == 0x7f80);  // rounds up to infinity
  CHECK(bits(std::numeric_limits<float>::infinity()) == 0x7f80);
  CHECK(bits(std::bit_cast<float>(0x00000001u)) == 0);
  // A NaN whose upper half alone would read as infinity stays a NaN.
  const auto nan = bits(std::bit_cast<float>(0x7f800001u));
  CHECK((nan & 0x7fff) > 0x7f80);
  for (uint32_t u = 0; u < 0x10000; ++u) {  // every bf16 survives the trip through f32
    bfloat16 b;
    b.bits = static_cast<uint16_t>(u);
    const float f = b;
    if (f == f) REQUIRE(bfloat16(f).bits == u);
  }
}

// The conversions of the compiler's own type, bit for bit, but for a NaN that is not quiet: those
// the compiler makes quiet when it widens.
TEST_CASE("tensor: float16 converts as IEEE half does") {
  static_assert(float16(1.0f).bits == 0x3c00 && float16(65504).bits == 0x7bff);
  static_assert(static_cast<float>(float16(0x1p-24)) == 0x1p-24f);
  const auto bits = [](float v) { return float16(v).bits; };
  const auto from = [](uint32_t u) {
    float16 h;
    h.bits = static_cast<uint16_t>(u);
    return h;
  };
  CHECK(bits(-0.0f) == 0x8000);
  CHECK(bits(65519.99f) == 0x7bff);
  CHECK(bits(65520.0f) == 0x7c00);  // half way to 2^16, which is even
  CHECK(bits(-std::numeric_limits<float>::infinity()) == 0xfc00);
  CHECK(bits(0x1p-25f) == 0);  // half way to the smallest, even below
  CHECK(bits(0x1.000002p-25f) == 1);
  CHECK(bits(0x1.8p-24f) == 2);                              // half way, even above
  CHECK(bits(std::bit_cast<float>(0x387ff000u)) == 0x0400);  // up into the normal numbers
  CHECK(bits(std::bit_cast<float>(0x3f801000u)) == 0x3c00);
  CHECK(bits(std::bit_cast<float>(0x3f803000u)) == 0x3c02);
  CHECK((bits(std::bit_cast<float>(0x7f800001u)) & 0x7fff) > 0x7c00);
  for (uint32_t u = 0; u < 0x10000; ++u) {
    const float f = from(u);
    if (f == f) REQUIRE(bits(f) == u);
    if (f != f) REQUIRE((u & 0x7fff) > 0x7c00);
    if (f != f) REQUIRE(bits(f) == (u | 0x200));
#ifdef __FLT16_MANT_DIG__
    const auto theirs = static_cast<float>(std::bit_cast<_Float16>(static_cast<uint16_t>(u)));
    if (f == f) REQUIRE(std::bit_cast<uint32_t>(theirs) == std::bit_cast<uint32_t>(f));
    // Narrowing: a number, both ways to its neighbour, half way, and a little beside that.
    const float step = std::bit_cast<float>(std::bit_cast<uint32_t>(f) + 0x1000);
    for (int beside = -1; beside <= 1; ++beside) {
      const auto at = std::bit_cast<uint32_t>(u % 0x8000 < 0x400 ? f + 0x1p-25f : step);
      const auto near = std::bit_cast<float>(at + static_cast<uint32_t>(beside));
      if (near != near) continue;
      REQUIRE(bits(near) == std::bit_cast<uint16_t>(static_cast<_Float16>(near)));
    }
#endif
  }
  for (int i = 0; i < 200000; ++i) {
    const float v = std::bit_cast<float>(philox(7, static_cast<uint64_t>(i))[0]);
    const uint16_t h = bits(v);
#ifdef __FLT16_MANT_DIG__
    if (v == v) REQUIRE(h == std::bit_cast<uint16_t>(static_cast<_Float16>(v)));
#endif
    if (v != v) REQUIRE((h & 0x7fff) > 0x7c00);
  }
}

// All halves at once go as vectors, one by one as single elements.
TEMPLATE_TEST_CASE("tensor: vectors of halves convert with the bits of single ones", "", bfloat16,
                   float16) {
  const Tensor all = empty({0x10000}, {dtype_of<TestType>()});
  for (uint32_t u = 0; u < 0x10000; ++u) all.data<TestType>()[u].bits = static_cast<uint16_t>(u);
  const Tensor tripled = mul(all, 3);
  for (uint32_t u = 0; u < 0x10000; ++u) {
    const float x = all.data<TestType>()[u];
    const TestType y = tripled.data<TestType>()[u];
    if (x == x)
      REQUIRE(y.bits == TestType(3 * x).bits);
    else
      REQUIRE(static_cast<float>(y) != static_cast<float>(y));
  }
}

TEST_CASE("tensor: device names") {
  CHECK(Device("cpu") == kCPU);
  CHECK(Device("cuda:3").index == 3);
  CHECK(cat(Device("cuda")) == "cuda:0");
  for (const char* bad : {"", "gpu", "cuda:", "cuda:-1", "cuda:1x", "cpu:1", "cuda:999"})
    CHECK(error_text([&] { Device{bad}; }) ==
          cat("device: name must be cpu, cuda or cuda:N, got '", bad, "'"));
  if (!has_backend(DeviceType::cuda))
    CHECK(error_text([] {
            zeros({1}, {.device = Device("cuda")});
          }).find("device must be present, got cuda") != std::string::npos);
}

TEST_CASE("tensor: factories") {
  CHECK(test::elements(arange(0, 1, 0.25, {.dtype = DType::f64})) ==
        std::vector<double>{0, 0.25, 0.5, 0.75});
  CHECK(test::elements(arange(5, 0, -2)) == std::vector<double>{5, 3, 1});
  CHECK(arange(3, 3).numel() == 0);
  CHECK(test::elements(linspace(0, 1, 3)) == std::vector<double>{0, 0.5, 1});
  CHECK(test::elements(linspace(2, 9, 1)) == std::vector<double>{2});
  CHECK(linspace(0.1, 0.7, 11, {.dtype = DType::f64}).data<double>()[10] == 0.7);
  CHECK(linspace(0, 1, 0).numel() == 0);
  CHECK(test::elements(eye(2)) == std::vector<double>{1, 0, 0, 1});
  CHECK(eye(0).shape() == Shape{0, 0});
  CHECK(test::elements(tensor<int32_t>({1, 2})) == std::vector<double>{1, 2});
  CHECK(tensor<float>({1, 2}).dtype() == DType::f32);
  CHECK(tensor({1, 2}).dtype() == DType::i32);
  CHECK(scalar_tensor(3).dim() == 0);
  CHECK(scalar_tensor(3).item<int>() == 3);
  CHECK(error_text([] {
          from_values(std::vector<float>{1, 2}, {3});
        }) == "from_values: values must number 3 for shape [3], got 2");
  float memory[4] = {1, 2, 3, 4};
  const Tensor blob = from_blob(memory, {2, 2});
  raw::fill_(blob, 7);
  CHECK(memory[3] == 7);
  CHECK(error_text([&] {
          from_blob(memory, {kMax, 2});
        }) == "from_blob: size must fit in 63 bits, got 9223372036854775807 x 2");
}
