// GradScaler: unscaling, the rules of the scale, skipped steps, its state and its errors.
#include "cairn/optim/scaler.h"

#include <cmath>
#include <limits>

#include "cairn/autograd/arena.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/reduce.h"
#include "cairn/optim/adam.h"
#include "cairn/optim/clip.h"
#include "cairn/optim/sgd.h"
#include "tests/catch.h"
#include "tests/optim/helpers.h"

using namespace cairn;
using cairn::test::error_of;
using cairn::test::leaf;
using cairn::test::values_of;

namespace {
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
}  // namespace

TEST_CASE("optim: unscaling divides every gradient and finds what is not finite") {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16})
    for (const bool in_arena : {false, true})
      // The last block's last element, the first one, and none.
      for (const int64_t bad_at : {int64_t{20000}, int64_t{0}, int64_t{-1}}) {
        const std::vector<Tensor> params = {leaf({7}, 1, dtype), leaf({20001}, 2, dtype)};
        if (in_arena) ParameterArena arena(params);
        for (const Tensor& p : params) set_grad(p, p);
        const auto before = values_of(params[1]);
        for (const double bad : {kInfinity, -kInfinity, kNan}) {
          set_grad(params[1], params[1]);
          if (bad_at >= 0) {
            const Tensor g = raw::clone(detach(params[1]));
            raw::fill_(raw::slice(g, 0, bad_at, bad_at + 1), bad);
            set_grad(params[1], g);
          }
          const Tensor scale = full({}, 4), found = zeros({});
          optim::unscale_grad_(params, scale, found);
          CHECK(found.item() == (bad_at >= 0 ? 1 : 0));
          const auto after = values_of(grad(params[1]));
          // A quarter is exact, but where it is below f16's normal numbers.
          const double off = dtype == DType::f16 ? 0x1p-25 : 0;
          for (size_t i = 0; i < after.size(); ++i)
            if (static_cast<int64_t>(i) != bad_at && std::abs(after[i] - before[i] / 4) > off)
              FAIL("element " << i);
          optim::unscale_grad_({params.data(), 1}, scale, found);
          CHECK(found.item() == (bad_at >= 0 ? 1 : 0));  // finite ones do not take it back
        }
      }
}

TEST_CASE("optim: the scale halves after an overflow and doubles after the interval") {
  const Tensor w = leaf({3}, 1);
  const auto optimizer = optim::adam({w}, {.lr = 0.1});
  optim::GradScaler scaler({.init_scale = 8, .growth_interval = 2});
  // Scales after each step, by PyTorch's rules.
  const std::vector<std::pair<bool, double>> steps = {
      {false, 8}, {false, 16}, {true, 8}, {false, 8}, {true, 4}, {false, 4}, {false, 8}};
  int64_t skipped = 0;
  for (const auto& [overflows, wanted] : steps) {
    optimizer->zero_grad();
    const Tensor loss = scaler.scale(sum(mul(w, overflows ? kInfinity : 3)));
    backward(loss);
    const auto before = values_of(w);
    scaler.step(*optimizer);
    CHECK((values_of(w) == before) == overflows);
    CHECK(scaler.found_inf().item() == (overflows ? 1 : 0));
    if (!overflows) CHECK(values_of(grad(w))[0] == 3);
    scaler.update();
    skipped += overflows ? 1 : 0;
    CHECK(scaler.scale_value() == wanted);
    CHECK(scaler.skipped_steps() == skipped);
    CHECK(scaler.found_inf().item() == 0);
  }
  // Only the steps that were done count.
  CHECK(optimizer->state_dict().numbers.at("state.0.step") == 5);
}

TEST_CASE("optim: a scale that f32 cannot hold does not grow") {
  const Tensor w = leaf({1}, 1);
  const auto optimizer = optim::sgd({w}, {.lr = 0.1});
  optim::GradScaler scaler({.init_scale = 0x1p127, .growth_interval = 1});
  set_grad(w, ones({1}));
  scaler.step(*optimizer);
  scaler.update();
  CHECK(scaler.scale_value() == 0x1p127);
}

TEST_CASE("optim: a scaler's state goes on where it was") {
  const Tensor w = leaf({2}, 1);
  const auto optimizer = optim::sgd({w}, {.lr = 0.1});
  optim::GradScaler from({.init_scale = 64, .growth_interval = 3}), to;
  for (const double g : {kNan, 1.0, 1.0}) {
    set_grad(w, full({2}, g));
    from.step(*optimizer);
    from.update();
  }
  to.load_state_dict(from.state_dict());
  CHECK(to.state_dict().numbers == from.state_dict().numbers);
  CHECK(to.scale_value() == 32);
  CHECK(to.skipped_steps() == 1);
  set_grad(w, ones({2}));
  to.step(*optimizer);
  to.update();
  CHECK(to.scale_value() == 64);  // the third without overflow
}

TEST_CASE("optim: errors of the scaler") {
  using optim::GradScaler;
  CHECK(error_of([] { GradScaler({.init_scale = 0}); }) ==
        "GradScaler: init_scale must be positive and finite in f32, got 0");
  CHECK(error_of([] { GradScaler({.growth_factor = 1}); }) ==
        "GradScaler: growth_factor must be finite and above 1, got 1");
  CHECK(error_of([] { GradScaler({.backoff_factor = 1}); }) ==
        "GradScaler: backoff_factor must be between 0 and 1, got 1");
  CHECK(error_of([] { GradScaler({.growth_interval = 0}); }) ==
        "GradScaler: growth_interval must be at least 1, got 0");
  const Tensor w = leaf({2}, 1);
  set_grad(w, ones({2}));
  const auto optimizer = optim::sgd({w}, {.lr = 0.1});
  GradScaler scaler;
  scaler.unscale_(*optimizer);
  CHECK(error_of([&] { scaler.unscale_(*optimizer); }) ==
        "GradScaler: unscale_ must be called once between updates, got a second call");
  scaler.step(*optimizer);  // does not unscale again
  CHECK(values_of(grad(w))[0] == 1 / 65536.0);
  scaler.update();
  scaler.unscale_(*optimizer);
  optim::State state = scaler.state_dict();
  state.numbers["scale"] = -1;
  CHECK(error_of([&] { scaler.load_state_dict(state); }) ==
        "GradScaler: init_scale must be positive and finite in f32, got -1");
  CHECK(scaler.scale_value() == 65536);
  CHECK(error_of([&] { scaler.scale({}); }) ==
        "GradScaler: loss must be floating, got an undefined tensor");
}
