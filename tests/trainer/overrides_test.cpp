// Which hooks a class fills, found without calling them.
#include "cairn/trainer/overrides.h"

#include "tests/catch.h"
#include "tests/trainer/small.h"

namespace cairn::test {
namespace {

using trainer::overrides;

struct Nothing : Callback {};
struct Start : Callback {
  void on_train_batch_start(Trainer& t, TrainingModule& m, const Batch& b, int64_t i) override {
    Callback::on_train_batch_start(t, m, b, i);
  }
};
struct Below : Start {
  void on_after_backward(Trainer&, TrainingModule&) final {}
};
struct Other {
  virtual ~Other() = default;
  virtual int first() { return 1; }
};
struct Second : Other, Below {
  bool needs_batch(const Trainer&, int64_t) const override { return false; }
};
struct Shared : virtual Callback {
  void on_train_batch_end(Trainer&, TrainingModule&, const Tensor&, const Batch&,
                          int64_t) override {}
};

std::string filled(const Callback& c) {
  std::string out;
  if (overrides(c, &Callback::on_train_batch_start)) out += "start ";
  if (overrides(c, &Callback::on_before_zero_grad)) out += "zero ";
  if (overrides(c, &Callback::on_after_backward)) out += "after ";
  if (overrides(c, &Callback::on_train_batch_end)) out += "end ";
  if (overrides(c, &Callback::needs_batch)) out += "needs ";
  return out;
}

TEST_CASE("trainer: overridden hooks are found, also those that call the base's") {
  CHECK(filled(Callback()).empty());
  CHECK(filled(Nothing()).empty());
  CHECK(filled(Start()) == "start ");
  CHECK(filled(Below()) == "start after ");
  CHECK(filled(Second()) == "start after needs ");
  CHECK(filled(Shared()) == "end ");
}

TEST_CASE("trainer: overridden functions of a module are found") {
  struct Plain : SmallModel {};
  struct Clips : SmallModel {
    void configure_gradient_clipping(optim::Optimizer&, std::optional<double>,
                                     const std::string&) override {}
  };
  const Plain plain;
  const Clips clips;
  CHECK_FALSE(overrides<TrainingModule>(plain, &TrainingModule::configure_gradient_clipping));
  CHECK_FALSE(overrides<TrainingModule>(plain, &TrainingModule::optimizer_zero_grad));
  CHECK(overrides<TrainingModule>(clips, &TrainingModule::configure_gradient_clipping));
  CHECK(overrides<TrainingModule>(clips, &TrainingModule::training_step));
}

}  // namespace
}  // namespace cairn::test
