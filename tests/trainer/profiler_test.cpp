// TrainerOptions::profiler: phases and hooks of a run as ranges around its kernels.
#include "cairn/tensor/profiler.h"

#include <stdexcept>

#include "tests/catch.h"
#include "tests/trainer/small.h"

using namespace cairn;
using namespace cairn::test;
using profiler::Kind;

namespace {

profiler::Row row_of(const Trainer& trainer, const std::string& name, Kind kind = Kind::range) {
  REQUIRE(trainer.profile() != nullptr);
  for (const auto& row : trainer.profile()->rows())
    if (row.name == name && row.kind == kind) return row;
  return {};
}

}  // namespace

TEST_CASE("trainer: the profiler option records each phase of a fit") {
  auto data = small_data(24);
  auto val_data = small_data(8);
  data::DataLoader loader(data, {.batch_size = 4, .num_workers = 1});
  data::DataLoader val_loader(val_data, {.batch_size = 4});
  SmallModel model;
  Trainer trainer(quiet({.max_epochs = 2, .num_sanity_val_steps = 0, .profiler = "simple"}));
  CHECK(trainer.profile() == nullptr);
  trainer.fit(model, loader, val_loader);
  CHECK_FALSE(profiler::recording());

  CHECK(row_of(trainer, "train_batch").calls == 12);
  CHECK(row_of(trainer, "training_step").calls == 12);
  CHECK(row_of(trainer, "backward").calls == 12);
  CHECK(row_of(trainer, "optimizer_step").calls == 12);
  CHECK(row_of(trainer, "make_batch").calls == 12 + 4);
  CHECK(row_of(trainer, "next_batch").calls >= 12);
  CHECK(row_of(trainer, "evaluation").calls == 2);
  CHECK(row_of(trainer, "validation_step").calls == 4);
  CHECK(row_of(trainer, "on_train_epoch_end").calls >= 2);
  CHECK(row_of(trainer, "adam_step", Kind::kernel).calls == 12);
  CHECK(row_of(trainer, "linear_fwd", Kind::kernel).calls >= 12 + 4);
  const double batches = row_of(trainer, "train_batch").total;
  CHECK(batches >= row_of(trainer, "training_step").total + row_of(trainer, "backward").total +
                       row_of(trainer, "optimizer_step").total);
  CHECK(batches <= trainer.profile()->seconds());

  // The next run is a recording of its own.
  trainer.validate(model, val_loader);
  CHECK(row_of(trainer, "validation_step").calls == 2);
  CHECK(row_of(trainer, "training_step").calls == 0);
}

TEST_CASE("trainer: a run that fails leaves its profile behind, stopped") {
  struct Failing : SmallModel {
    Tensor training_step(const Batch& batch, int64_t batch_idx) override {
      if (batch_idx == 2) throw std::runtime_error("no more");
      return SmallModel::training_step(batch, batch_idx);
    }
  } model;
  auto data = small_data(24);
  data::DataLoader loader(data, {.batch_size = 4});
  Trainer trainer(quiet({.max_epochs = 1, .profiler = "simple"}));
  CHECK(error_text([&] { trainer.fit(model, loader); }) == "no more");
  CHECK_FALSE(profiler::recording());
  CHECK(row_of(trainer, "training_step").calls == 3);
  CHECK(row_of(trainer, "backward").calls == 2);
}

TEST_CASE("trainer: without the option nothing is recorded, and a Profile around sees the run") {
  auto data = small_data(8);
  data::DataLoader loader(data, {.batch_size = 4});
  SmallModel model;
  Trainer trainer(quiet({.max_epochs = 1}));
  profiler::Profile profile;
  trainer.fit(model, loader);
  profile.stop();
  CHECK(trainer.profile() == nullptr);
  int64_t steps = 0;
  for (const auto& row : profile.rows())
    if (row.name == "training_step") steps += row.calls;
  CHECK(steps == 2);
  CHECK(error_text([] { Trainer other(quiet({.profiler = "advanced"})); }) ==
        "Trainer: profiler must be simple or empty, got advanced");
}
