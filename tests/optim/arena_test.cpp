// ParameterArena: packing, recognising, runs.
#include "cairn/autograd/arena.h"

#include "cairn/autograd/engine.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/optim/helpers.h"

using namespace cairn;
using cairn::test::error_of;
using cairn::test::leaf;
using cairn::test::values_of;

TEST_CASE("optim: an arena keeps values, handles, strides and gradients") {
  const Tensor conv = empty_strided({4, 3, 2, 2}, {1, 4, 24, 12});
  uniform_(conv, -1, 1);
  set_requires_grad(conv);
  const Tensor bias = leaf({5}, 1);
  const Tensor scalar = leaf({}, 2);
  const Tensor gradient = raw::to(rand({5}), DType::f32);
  set_grad(bias, gradient);
  const auto conv_before = values_of(conv), bias_before = values_of(bias);

  const ParameterArena arena(std::vector<Tensor>{conv, bias, scalar});
  CHECK(arena.size() == 3);
  CHECK(arena.offset(0) == 0);
  CHECK(arena.offset(1) == 48);
  CHECK(arena.offset(2) == 64);
  CHECK(arena.data().shape() == Shape{80});
  CHECK(arena.grads().shape() == Shape{80});
  CHECK(values_of(conv) == conv_before);
  CHECK(values_of(bias) == bias_before);
  CHECK(conv.strides() == Shape{1, 4, 24, 12});
  CHECK(values_of(grad(bias)) == values_of(gradient));
  CHECK_FALSE(grad(conv).defined());
  for (const Tensor& p : {conv, bias, scalar}) {
    CHECK(p.storage() == arena.data().storage());
    CHECK(reinterpret_cast<uintptr_t>(p.raw_data()) % kArenaAlignment == 0);
  }
  CHECK(grad(bias).storage() == arena.grads().storage());
  REQUIRE(arena.runs().size() == 1);
  CHECK(arena.runs()[0].numel == 65);

  // Gaps are zero in both blocks.
  const auto data = values_of(arena.data()), grads = values_of(arena.grads());
  for (size_t i = 53; i < 64; ++i) CHECK((data[i] == 0 && grads[i] == 0));
  for (size_t i = 65; i < 80; ++i) CHECK((data[i] == 0 && grads[i] == 0));
  // The blocks are the parameters' memory, not copies.
  raw::fill_(arena.data(), 3);
  CHECK(values_of(bias) == std::vector<double>(5, 3.0));
}

TEST_CASE("optim: an arena is recognised, whole and in part") {
  const std::vector<Tensor> all = {leaf({3}, 1), leaf({16}, 2), leaf({20}, 3), leaf({2, 2}, 4)};
  const ParameterArena first(all);
  const void* const address = all[2].raw_data();

  const ParameterArena again(all);
  CHECK(again.data().storage() == first.data().storage());
  CHECK(again.data().numel() == first.offset(3) + 4);
  CHECK(again.runs().size() == 1);

  const ParameterArena part(std::vector<Tensor>{all[3], all[0], all[1]});
  CHECK(part.data().storage() == first.data().storage());
  CHECK(all[2].raw_data() == address);
  CHECK(part.offset(0) == first.offset(3));
  CHECK(part.offset(1) == 0);
  REQUIRE(part.runs().size() == 2);
  CHECK(part.runs()[0].offset == 0);
  CHECK(part.runs()[0].numel == 32);
  CHECK(part.runs()[1].offset == first.offset(3));

  // One more parameter: a new arena for all.
  std::vector<Tensor> more = all;
  more.push_back(leaf({7}, 5));
  const auto before = values_of(all[1]);
  const ParameterArena grown(more);
  CHECK(grown.data().storage() != first.data().storage());
  CHECK(all[1].storage() == grown.data().storage());
  CHECK(values_of(all[1]) == before);
}

TEST_CASE("optim: packing goes by dtype and skips frozen parameters") {
  const Tensor single = leaf({3}, 1), wide = leaf({4}, 2, DType::f64), frozen = rand({5});
  const Tensor narrow = leaf({6}, 3, DType::bf16), other = leaf({2}, 4);
  const void* const address = frozen.raw_data();
  const auto arenas = pack_parameters(std::vector<Tensor>{single, wide, frozen, narrow, other});
  REQUIRE(arenas.size() == 3);
  CHECK(arenas[0].data().dtype() == DType::f32);
  CHECK(arenas[0].size() == 2);
  CHECK(arenas[1].data().dtype() == DType::f64);
  CHECK(arenas[1].data().numel() == 8);
  CHECK(arenas[2].data().numel() == 32);
  CHECK(frozen.raw_data() == address);
}

TEST_CASE("optim: gradients of a packed parameter land in the arena") {
  const Tensor w = leaf({3}, 1);
  const ParameterArena arena(std::vector<Tensor>{w});
  set_grad(w, ones({3}));
  CHECK(values_of(arena.grads())[2] == 1);
  zero_grad(w);
  CHECK_FALSE(grad(w).defined());
}

TEST_CASE("optim: an arena's gradients move to other memory") {
  const Tensor a = full({3}, 1), b = full({4, 2}, 2);
  for (const Tensor& p : {a, b}) set_requires_grad(p);
  ParameterArena arena(std::vector<Tensor>{a, b});
  set_grad(b, full({4, 2}, 7));
  const Tensor memory = zeros({arena.data().numel()});
  REQUIRE(arena.is_whole());
  arena.set_grads_memory(memory);
  CHECK(arena.grads().raw_data() == memory.raw_data());
  CHECK(memory.data<float>()[arena.offset(1)] == 7);
  set_grad(a, full({3}, 5));
  CHECK(memory.data<float>()[0] == 5);
  // It is still an arena, so that packing again moves nothing.
  const ParameterArena again(std::vector<Tensor>{a, b});
  CHECK(again.grads().raw_data() == memory.raw_data());
  const ParameterArena part(std::vector<Tensor>{b});
  CHECK(!part.is_whole());
  CHECK_THROWS_WITH(ParameterArena(std::vector<Tensor>{b}).set_grads_memory(zeros({8})),
                    "set_grads_memory: arena must be a whole block, got a part of one");
  CHECK_THROWS_WITH(arena.set_grads_memory(zeros({8})),
                    Catch::Matchers::StartsWith("set_grads_memory: memory must be contiguous f32"));
}

TEST_CASE("optim: arena errors") {
  const Tensor w = leaf({3}, 1);
  CHECK(error_of([&] { ParameterArena(std::vector<Tensor>{}); }) ==
        "arena: parameters must number at least 1, got 0");
  CHECK(error_of([&] {
          ParameterArena(std::vector<Tensor>{w, rand({2})});
        }) == "arena: parameter 1 must be a leaf that requires a gradient, got one that does not");
  CHECK(error_of([&] {
          ParameterArena(std::vector<Tensor>{w, leaf({2}, 2, DType::f64)});
        }) == "arena: parameter 1 must be f32 on cpu as the first, got f64 on cpu");
  CHECK(error_of([&] {
          ParameterArena(std::vector<Tensor>{w, leaf({2}, 2), w});
        }) ==
        "arena: parameters must not share memory, got parameters 0 and 2 on the same elements");
  const Tensor tied = w.alias();
  set_requires_grad(tied);
  CHECK(error_of([&] {
          ParameterArena(std::vector<Tensor>{tied, w});
        }) ==
        "arena: parameters must not share memory, got parameters 0 and 1 on the same elements");
}
