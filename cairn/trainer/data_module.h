// DataModule: the loaders of all stages in one place, with what they need beforehand.
// Invariant: the module owns its loaders and keeps them alive until teardown; a stage that is
// switched off never asks for its loader.
#pragma once

#include "cairn/data/data_loader.h"
#include "cairn/trainer/stage.h"
#include "cairn/trainer/value.h"

namespace cairn::trainer {

class DataModule {
 public:
  DataModule() = default;
  virtual ~DataModule() = default;
  DataModule(const DataModule&) = delete;
  DataModule& operator=(const DataModule&) = delete;

  // Downloads and the like. With several processes one of each host (local rank 0) calls it while
  // the others wait, for DDPStrategyOptions::patience; so it must not keep anything in the object.
  virtual void prepare_data() {}
  // Makes the datasets of a stage.
  virtual void setup(Stage) {}
  virtual void teardown(Stage) {}
  virtual void on_exception(const std::exception&) {}

  // Null: there is none.
  virtual data::DataLoader* train_dataloader() { return nullptr; }
  virtual data::DataLoader* val_dataloader() { return nullptr; }
  virtual data::DataLoader* test_dataloader() { return nullptr; }
  virtual data::DataLoader* predict_dataloader() { return nullptr; }

  // What a checkpoint keeps of it, beside the training loader's place.
  virtual State state_dict() const { return {}; }
  virtual void load_state_dict(const State&) {}
};

}  // namespace cairn::trainer
