// Schedules: what PyTorch's parity file does not hold (SequentialLR, LambdaLR, states, errors).
#include "cairn/optim/schedule.h"

#include <cmath>
#include <limits>

#include "cairn/optim/adam.h"
#include "cairn/optim/config.h"
#include "cairn/optim/sgd.h"
#include "tests/catch.h"
#include "tests/optim/helpers.h"

using namespace cairn;
using cairn::test::error_of;
using cairn::test::leaf;

namespace {

std::unique_ptr<optim::Optimizer> make(double lr = 0.1) {
  return optim::sgd({leaf({2}, 1)}, {.lr = lr, .momentum = 0.9});
}

std::vector<double> follow(optim::Optimizer& optimizer, optim::Schedule& schedule, int steps) {
  std::vector<double> out = {optimizer.lr()};
  for (int i = 0; i < steps; ++i) {
    schedule.step();
    out.push_back(optimizer.lr());
  }
  return out;
}

void check_close(const std::vector<double>& got, const std::vector<double>& wanted) {
  REQUIRE(got.size() == wanted.size());
  for (size_t i = 0; i < got.size(); ++i) {
    INFO("step " << i);
    CHECK(got[i] == Approx(wanted[i]).epsilon(1e-13));
  }
}

}  // namespace

TEST_CASE("optim: lambda_lr multiplies the base rate") {
  auto optimizer = make();
  auto schedule = optim::lambda_lr(*optimizer, [](int64_t epoch) { return 1.0 / (epoch + 1); });
  check_close(follow(*optimizer, *schedule, 3), {0.1, 0.05, 0.1 / 3, 0.025});
}

TEST_CASE("optim: sequential_lr hands over at the milestone") {
  auto optimizer = make();
  std::vector<std::unique_ptr<optim::Schedule>> parts;
  parts.push_back(optim::linear_lr(*optimizer, {.start_factor = 0.25, .total_iters = 3}));
  parts.push_back(optim::exponential_lr(*optimizer, {.gamma = 0.5}));
  auto schedule = optim::sequential_lr(*optimizer, std::move(parts), {3});
  // Warm-up from a quarter; from epoch 3 on the decay from the base rate.
  check_close(follow(*optimizer, *schedule, 5), {0.025, 0.05, 0.075, 0.1, 0.05, 0.025});
}

TEST_CASE("optim: every group follows from its own base rate") {
  auto optimizer = optim::sgd({{{leaf({2}, 1)}, {.lr = 1}}, {{leaf({3}, 2)}, {.lr = 0.5}}});
  auto schedule = optim::cosine_annealing_lr(*optimizer, {.t_max = 4});
  schedule->step();
  schedule->step();
  CHECK(schedule->last_lr()[0] == Approx(0.5));
  CHECK(schedule->last_lr()[1] == Approx(0.25));
  CHECK(schedule->last_epoch() == 2);
}

TEST_CASE("optim: one_cycle_lr moves Adam's first beta") {
  auto optimizer = optim::adam({leaf({2}, 1)});
  auto schedule = optim::one_cycle_lr(*optimizer, {.max_lr = 1, .total_steps = 10});
  CHECK(optimizer->momentum() == 0.95);
  for (int i = 0; i < 2; ++i) schedule->step();
  CHECK(optimizer->momentum() == Approx(0.85));
  CHECK(optimizer->lr() == Approx(1));
  for (int i = 0; i < 8; ++i) schedule->step();
  CHECK(error_of([&] { schedule->step(); }) ==
        "one_cycle_lr: steps must number at most 10, got 11");
}

TEST_CASE("optim: schedules go on from a saved state") {
  const auto check_kind = [](auto build) {
    const auto advance = [](optim::Schedule& s, int i) {
      if (s.needs_metric())
        s.step(i < 2 ? 1.0 - i : 5.0);
      else
        s.step();
    };
    auto straight_optimizer = make();
    auto straight = build(*straight_optimizer);
    auto first_optimizer = make();
    auto first = build(*first_optimizer);
    for (int i = 0; i < 5; ++i) advance(*straight, i), advance(*first, i);
    auto second_optimizer = make();
    auto second = build(*second_optimizer);
    second->load_state_dict(first->state_dict());
    second_optimizer->load_state_dict(first_optimizer->state_dict());
    for (int i = 5; i < 9; ++i) {
      advance(*straight, i), advance(*second, i);
      CHECK(second_optimizer->lr() == straight_optimizer->lr());
      CHECK(second_optimizer->momentum() == straight_optimizer->momentum());
    }
  };
  check_kind([](auto& o) { return optim::step_lr(o, {.step_size = 2}); });
  check_kind([](auto& o) { return optim::cosine_annealing_lr(o, {.t_max = 6}); });
  check_kind([](auto& o) { return optim::one_cycle_lr(o, {.max_lr = 1, .total_steps = 10}); });
  check_kind([](auto& o) { return optim::reduce_lr_on_plateau(o, {.patience = 1}); });
  check_kind([](auto& o) {
    std::vector<std::unique_ptr<optim::Schedule>> parts;
    parts.push_back(optim::linear_lr(o));
    parts.push_back(optim::exponential_lr(o, {.gamma = 0.5}));
    return optim::sequential_lr(o, std::move(parts), {6});
  });
}

TEST_CASE("optim: plateau counts NaN as no improvement and wants its metric") {
  auto optimizer = make();
  auto schedule = optim::reduce_lr_on_plateau(*optimizer, {.factor = 0.5, .patience = 0});
  const double nan = std::numeric_limits<double>::quiet_NaN();
  schedule->step(nan);
  CHECK(optimizer->lr() == Approx(0.05));
  CHECK(schedule->needs_metric());
  CHECK(error_of([&] { schedule->step(); }) ==
        "reduce_lr_on_plateau: step must be given the metric, got none");
  CHECK(optimizer->lr() == Approx(0.05));
}

TEST_CASE("optim: schedules check their options") {
  auto o = make();
  CHECK(error_of([&] { optim::step_lr(*o, {.step_size = 0}); }) ==
        "step_lr: step_size must be positive, got 0");
  CHECK(error_of([&] { optim::exponential_lr(*o, {.gamma = -1}); }) ==
        "exponential_lr: gamma must be finite and not negative, got -1");
  CHECK(error_of([&] { optim::cosine_annealing_lr(*o, {}); }) ==
        "cosine_annealing_lr: t_max must be positive, got 0");
  CHECK(error_of([&] { optim::linear_lr(*o, {.start_factor = 0}); }) ==
        "linear_lr: start_factor must lie in (0, 1], got 0");
  CHECK(error_of([&] { optim::one_cycle_lr(*o, {.max_lr = 1}); }) ==
        "one_cycle_lr: total_steps must be positive, got 0");
  CHECK(error_of([&] { optim::reduce_lr_on_plateau(*o, {.factor = 1}); }) ==
        "reduce_lr_on_plateau: factor must lie in (0, 1), got 1");
  CHECK(error_of([&] { optim::sequential_lr(*o, {}, {}); }) ==
        "sequential_lr: milestones must number one less than schedules, got 0 and 0");
  auto schedule = optim::step_lr(*o, {.step_size = 1});
  CHECK(error_of([&] { schedule->load_state_dict({}); }) ==
        "step_lr: state must have the number last_epoch, got none");
}

TEST_CASE("optim: a config is an optimizer, or one with a schedule") {
  const auto plain = []() -> OptimizerConfig { return optim::adam({leaf({2}, 1)}, {.lr = 0.5}); };
  CHECK(plain().optimizer->lr() == 0.5);
  CHECK(plain().schedule == nullptr);
  const auto with = []() -> OptimizerConfig {
    auto optimizer = optim::sgd({leaf({2}, 1)}, {.lr = 0.5});
    auto schedule = optim::step_lr(*optimizer, {.step_size = 1});
    return {std::move(optimizer), std::move(schedule), {.interval = optim::Interval::step}};
  };
  OptimizerConfig config = with();
  CHECK(config.interval == optim::Interval::step);
  CHECK(config.frequency == 1);
  config.schedule->step();
  CHECK(config.optimizer->lr() == Approx(0.05));
}
