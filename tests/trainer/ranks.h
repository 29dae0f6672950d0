// Fits by several ranks that are threads: a job, a model with metrics of all, and what came of it.
#pragma once

#include <algorithm>
#include <cmath>

#include "cairn/tensor/parallel.h"
#include "cairn/trainer/ddp_strategy.h"
#include "tests/dist/thread_group.h"
#include "tests/trainer/small.h"

namespace cairn::test {

using trainer::DDPStrategy;
using Group = std::shared_ptr<dist::ProcessGroup>;

inline std::vector<float> values_of(const nn::Module& model) {
  std::vector<float> out;
  for (const Tensor& p : model.parameters()) {
    const Tensor c = raw::contiguous(p);
    out.insert(out.end(), c.data<float>(), c.data<float>() + c.numel());
  }
  return out;
}

// SmallModel without dropout, with metrics of all processes.
struct SyncedModel : SmallModel {
  SyncedModel() {
    dropout_p = 0;
    Generator generator(3);
    for (const Tensor& p : parameters()) raw::copy_(p, randn(p.shape(), {}, generator));
  }
  Tensor training_step(const Batch& batch, int64_t) override {
    Tensor loss = mse_loss(forward(batch.input), batch.target);
    log("loss", loss, {.on_step = true, .on_epoch = true, .sync_dist = sync});
    return loss;
  }
  void validation_step(const Batch& batch, int64_t) override {
    const Tensor loss = mse_loss(forward(batch.input), batch.target);
    log("val_loss", loss, {.sync_dist = sync});
    log("largest", loss, {.reduce_fx = trainer::Reduce::max, .sync_dist = sync});
    log("batches", 1.0, {.reduce_fx = trainer::Reduce::sum, .sync_dist = sync});
  }
  bool sync = true;
};

struct Fitted {
  std::vector<float> parameters;
  trainer::Metrics metrics;
  std::vector<std::string> warnings;
  int64_t steps = 0;
  std::string stop_reason;
};

// A fit by `ranks` threads; `change` may change a rank's options, model and loaders.
struct Job {
  TrainerOptions options;
  std::string resume = {};
  int64_t batch_size = 8;
  bool sync = true;
  std::function<void(int rank, TrainerOptions&)> change = {};

  std::vector<Fitted> run(int ranks) const {
    std::vector<Fitted> out(static_cast<size_t>(ranks));
    on_ranks(ranks, [&](const Group& group) {
      const data::TensorDataset train_set = small_data(48), val_set = small_data(20, 8);
      data::DataLoader train(train_set, {.batch_size = batch_size / ranks, .shuffle = true});
      data::DataLoader val(val_set, {.batch_size = 4});
      SyncedModel model;
      model.sync = sync;
      TrainerOptions o = options;
      if (change) change(group->rank(), o);
      o.strategy = DDPStrategy({.group = group});
      Trainer trainer(std::move(o));
      trainer.fit(model, train, val, {.ckpt_path = resume});
      out[static_cast<size_t>(group->rank())] = {values_of(model), trainer.callback_metrics(),
                                                 trainer.warnings(), trainer.global_step(),
                                                 trainer.stop_reason()};
    });
    return out;
  }
};

struct OneThread {
  OneThread() : before(num_threads()) { set_num_threads(1); }
  ~OneThread() { set_num_threads(before); }
  int before;
};

inline double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i)
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - b[i]));
  return largest;
}

}  // namespace cairn::test
