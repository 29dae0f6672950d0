// Taps of a convolution that only meet padding: left out of the gradient's writing and of the step,
// with the bits of the full computation.
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/reduce.h"
#include "cairn/nn/conv.h"
#include "cairn/optim/adam.h"
#include "cairn/optim/clip.h"
#include "cairn/optim/sgd.h"
#include "cairn/tensor/cpu_allocator.h"
#include "tests/catch.h"
#include "tests/optim/helpers.h"

using namespace cairn;

namespace {

constexpr int64_t kIn = 16, kOut = 32;

// Two convolutions, so that a run of the optimizer goes from one into the other.
struct Net {
  Net() {
    Generator generator(5);
    for (const Tensor& p : parameters()) uniform_(p, -1, 1, generator);
  }
  std::vector<Tensor> parameters() const {
    return {first.weight, first.bias, second.weight, second.bias};
  }
  nn::Conv2d first{kIn, kOut, 3, {.padding = 1}};
  nn::Conv2d second{kOut, kIn, 3, {.padding = 1}};
};

Tensor images(int64_t size, int step) {
  Generator generator(static_cast<uint64_t>(100 + step));
  return randn({4, kIn, size, size}, {}, generator);
}

void run_backward(Net& net, int64_t size, int step) {
  const Tensor y = net.second(net.first(images(size, step)));
  backward(sum(mul(y, y)));
}

// The values of the first weight's memory, element by element.
float* memory(const Tensor& t) { return t.data<float>(); }

std::vector<float> bits_of(const Net& net) {
  std::vector<float> out;
  for (const Tensor& p : net.parameters()) out.insert(out.end(), memory(p), memory(p) + p.numel());
  return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

using Make = std::function<std::unique_ptr<optim::Optimizer>(std::vector<Tensor>)>;

// Trains on 1x1, then 4x4, then 1x1 maps; `full` asks for the gradients before each step, after
// which nothing may be left out.
std::vector<float> train(const Make& make, bool clip, bool full) {
  Net net;
  const auto optimizer = make(net.parameters());
  const int64_t sizes[] = {1, 1, 1, 4, 4, 1, 1, 2, 1};
  for (int step = 0; step < 9; ++step) {
    optimizer->zero_grad();
    run_backward(net, sizes[step], step);
    if (step == 6) run_backward(net, 2, 50);  // accumulates what more taps reach
    if (clip) optim::clip_grad_norm_(net.parameters(), 0.5);
    if (full)
      for (const Tensor& p : net.parameters()) (void)grad(p);
    const bool sparse = sizes[step] == 1 && step != 6 && !full;
    CHECK(grad_zeros(net.first.weight).empty() == !sparse);
    optimizer->step();
  }
  return bits_of(net);
}

}  // namespace

TEST_CASE("optim: leaving out taps over padding changes no bit", "[optim]") {
  const std::pair<const char*, Make> cases[] = {
      {"adam", [](auto p) { return optim::adam(std::move(p), {.lr = 0.1}); }},
      {"adam amsgrad",
       [](auto p) { return optim::adam(std::move(p), {.lr = 0.1, .amsgrad = true}); }},
      {"adam decay",
       [](auto p) { return optim::adam(std::move(p), {.lr = 0.1, .weight_decay = 0.1}); }},
      {"adam maximize",
       [](auto p) { return optim::adam(std::move(p), {.lr = 0.1, .maximize = true}); }},
      {"adamw", [](auto p) { return optim::adamw(std::move(p), {.lr = 0.1}); }},
      {"sgd", [](auto p) { return optim::sgd(std::move(p), {.lr = 0.01}); }},
      {"sgd momentum",
       [](auto p) { return optim::sgd(std::move(p), {.lr = 0.01, .momentum = 0.9}); }},
      {"sgd decay",
       [](auto p) { return optim::sgd(std::move(p), {.lr = 0.01, .weight_decay = 0.1}); }},
  };
  for (const auto& [name, make] : cases) {
    for (const bool clip : {false, true}) {
      INFO(name << (clip ? " with clipping" : ""));
      CHECK(same_bits(train(make, clip, false), train(make, clip, true)));
    }
  }
}

TEST_CASE("optim: lists of zeros meet, and tell what is left", "[optim]") {
  using kernels::ZeroPattern;
  const ZeroPattern all{{{0, 60}}}, filters{{{0, 4}, {6, 9}}, 20}, other{{{2, 8}}, 20};
  CHECK(all.whole(60));
  CHECK(ZeroPattern{{{0, 20}}, 20}.whole(60));
  CHECK(!all.whole(61));
  CHECK(intersection(filters, other, 60) == ZeroPattern{{{2, 4}, {6, 8}}, 20});
  CHECK(intersection(all, other, 60) == other);
  CHECK(intersection(other, all, 60) == other);
  // What repeats differently is not known to meet.
  CHECK(intersection(ZeroPattern{{{0, 59}}}, other, 60).empty());
  CHECK(intersection(filters, ZeroPattern{{{5, 6}}, 20}, 60) == ZeroPattern());
  CHECK(contains(all, filters, 60));
  CHECK(!contains(filters, other, 60));

  std::vector<int64_t> rest;
  const auto note = [&](const kernels::Rest& r) {
    for (int64_t i = 0; i < r.count; ++i)
      for (int64_t j = 0; j < r.length; ++j) rest.push_back(r.begin + i * r.step + j);
  };
  for_each_rest(filters, 60, note);
  std::sort(rest.begin(), rest.end());
  std::vector<int64_t> wanted;
  for (int64_t i = 0; i < 60; ++i)
    if (i % 20 == 4 || i % 20 == 5 || i % 20 >= 9) wanted.push_back(i);
  CHECK(rest == wanted);
  rest.clear();
  for_each_rest(ZeroPattern{{{1, 3}}}, 4, note);
  CHECK(rest == std::vector<int64_t>{0, 3});
  for_each_rest(all, 60, [](const kernels::Rest&) { FAIL(); });
}

TEST_CASE("optim: the taps left out are those over padding", "[optim]") {
  Net net;
  const auto optimizer = optim::adam(net.parameters());
  run_backward(net, 1, 0);
  // One tap of nine sees a 1x1 map.
  const int64_t tap = kIn * kOut;
  CHECK(grad_zeros(net.first.weight) == kernels::ZeroPattern{{{0, 4 * tap}, {5 * tap, 9 * tap}}});
  optimizer->zero_grad();
  CHECK(grad_zeros(net.first.weight).empty());
}

TEST_CASE("optim: a gradient written from outside is stepped in full", "[optim]") {
  Net net;
  const auto optimizer = optim::sgd(net.parameters(), {.lr = 1});
  float* const w = memory(net.first.weight);

  SECTION("through a fresh handle") {
    run_backward(net, 1, 0);
    memory(grad(net.first.weight))[0] = 2;
  }
  SECTION("through an old handle") {
    run_backward(net, 1, 0);
    const Tensor handle = grad(net.first.weight);
    optimizer->zero_grad();
    run_backward(net, 1, 1);
    CHECK(memory(handle)[0] == 0);
    memory(handle)[0] = 2;
    const float before = w[0];
    optimizer->step();
    CHECK(w[0] == before - 2);
    return;
  }
  SECTION("through a view of the arena") {
    run_backward(net, 1, 0);
    const Tensor view = [&] {
      const Tensor g = grad(net.first.weight);
      return raw::as_strided(g, {1}, {1}, g.offset());
    }();
    optimizer->zero_grad();
    run_backward(net, 1, 1);
    CHECK(!grad_zeros(net.first.weight).empty());
    add_(view, full({1}, 2));
    CHECK(grad_zeros(net.first.weight).empty());
  }
  SECTION("by a hook") {
    on_grad_ready(net.first.weight, [](const Tensor& g) { memory(g)[0] = 2; });
    run_backward(net, 1, 0);
    const float before = w[0];
    optimizer->step();
    CHECK(w[0] == before - 2);
    return;
  }
  const float before = w[0];
  optimizer->step();
  CHECK(w[0] == before - 2);

  // And the next backward clears it.
  optimizer->zero_grad();
  run_backward(net, 1, 2);
  CHECK(memory(grad(net.first.weight))[0] == 0);
}

TEST_CASE("optim: a norm of NaN reaches every tap", "[optim]") {
  Net net;
  const auto optimizer = optim::sgd(net.parameters(), {.lr = 1});
  run_backward(net, 1, 0);
  REQUIRE(!grad_zeros(net.first.weight).empty());
  {
    const Tensor g = grad(net.first.bias);
    memory(g)[0] = NAN;
  }
  optim::clip_grad_norm_(net.parameters(), 1);
  CHECK(grad_zeros(net.first.weight).empty());
  optimizer->step();
  CHECK(std::isnan(memory(net.first.weight)[0]));
}

TEST_CASE("optim: momentum that was off for a while moves what it knew", "[optim]") {
  Net net;
  const auto optimizer = optim::sgd(net.parameters(), {.lr = 0.01, .momentum = 0.9});
  const auto step = [&](int64_t size, int i, double momentum) {
    optimizer->set_momentum(0, momentum);
    optimizer->zero_grad();
    run_backward(net, size, i);
    optimizer->step();
    return memory(net.first.weight)[0];
  };
  step(4, 0, 0.9);
  const float still = step(1, 1, 0);
  CHECK(step(1, 2, 0) == still);
  CHECK(step(1, 3, 0.9) != still);
}

TEST_CASE("optim: states that are not zero are stepped", "[optim]") {
  Net net;
  const auto optimizer = optim::adam(net.parameters(), {.lr = 0.1});
  const auto step = [&](int64_t size, int i) {
    optimizer->zero_grad();
    run_backward(net, size, i);
    optimizer->step();
  };
  step(4, 0);
  const optim::State saved = [&] {
    optim::State copy = optimizer->state_dict();
    for (auto& [name, t] : copy.tensors) t = raw::clone(t);
    return copy;
  }();
  const std::vector<float> before = bits_of(net);
  step(1, 1);  // momentum of the 4x4 step moves every tap
  const int64_t moved = kIn * kOut / 2;
  CHECK(bits_of(net)[static_cast<size_t>(moved)] != before[static_cast<size_t>(moved)]);

  SECTION("after loading") {
    Net other;
    const auto fresh = optim::adam(other.parameters(), {.lr = 0.1});
    run_backward(other, 1, 0);
    fresh->step();
    fresh->load_state_dict(saved);
    const std::vector<float> unmoved = bits_of(other);
    fresh->zero_grad();
    run_backward(other, 1, 1);
    fresh->step();
    CHECK(bits_of(other)[static_cast<size_t>(moved)] != unmoved[static_cast<size_t>(moved)]);
  }
  SECTION("written through state_dict") {
    Net other;
    const auto fresh = optim::adam(other.parameters(), {.lr = 0.1});
    run_backward(other, 1, 0);
    fresh->step();
    memory(fresh->state_dict().tensors.at("state.0.exp_avg"))[0] = 1;
    const float unmoved = memory(other.first.weight)[0];
    fresh->zero_grad();
    run_backward(other, 1, 1);
    fresh->step();
    CHECK(memory(other.first.weight)[0] != unmoved);
  }
}

#if !defined(__SANITIZE_ADDRESS__)  // under which nothing is fresh from the system
TEST_CASE("optim: what is left out of the first steps costs no memory", "[optim]") {
  cpu_allocator()->release_cached();
  const nn::Conv2d conv(512, 512, 3, {.padding = 1, .bias = false});
  const auto optimizer = optim::adam({conv.weight});
  for (int step = 0; step < 2; ++step) {
    optimizer->zero_grad();
    const Tensor y = conv2d(randn({2, 512, 1, 1}), conv.weight, {}, {.padding = 1});
    backward(sum(mul(y, y)));
    optimizer->step();
  }
  optim::State state = optimizer->state_dict();
  // The first of nine taps; the middle one, which meets data, is four matrices on.
  constexpr size_t kBytes = 512 * 512 * sizeof(float);
  for (const Tensor& t : {state.tensors.at("state.0.exp_avg"), grad(conv.weight)}) {
    std::vector<unsigned char> pages(kBytes / 4096);
    REQUIRE(mincore(t.raw_data(), kBytes, pages.data()) == 0);
    CHECK(std::count(pages.begin(), pages.end(), 1) == 0);
    CHECK(t.data<float>()[4 * 512 * 512] != 0);
  }
}
#endif
