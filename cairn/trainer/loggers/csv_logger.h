// CSVLogger: a run's numbers in metrics.csv, its settings in hparams.yaml.
// Invariant: metrics.csv always is one table: a new column is added to the rows already written; a
// resumed run continues the file as if it had not been interrupted.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cairn/trainer/loggers/logger.h"

namespace cairn::trainer {

struct CSVLoggerOptions {
  // Files go to <save_dir>/<name>/version_<version>; without a version the next free one is taken.
  std::string save_dir = ".";
  std::string name = "cairn_logs";
  std::optional<int64_t> version = {};
  // Given: the files go exactly here instead, and replace those of an earlier run.
  std::string dir = {};
  int64_t flush_logs_every_n_steps = 100;  // rows kept in memory at most
};

class CSVLogger : public Logger {
 public:
  explicit CSVLogger(CSVLoggerOptions options = {});

  std::string log_dir() const override;
  void log_hyperparams(const State& hyper_parameters) override;
  void log_metrics(const Metrics& metrics, int64_t step) override;
  void save() override;
  State state_dict() const override;
  void resume(const State& state) override;
  void finalize(std::string_view status) override;

  std::string metrics_path() const { return log_dir() + "/metrics.csv"; }

 private:
  struct Row {
    int64_t step = 0;
    Metrics metrics;
  };

  std::string header() const;
  std::string line(const Row& row) const;
  void make_folder() const;
  // Puts the file's first `count` rows and its columns in front of rows_, if there is a file.
  void read_rows(int64_t count);
  void rewrite();
  void append();

  CSVLoggerOptions options_;
  mutable std::string dir_;
  std::vector<std::string> columns_;  // beside "epoch" and "step", which come first
  std::vector<Row> rows_;             // not yet in the file
  int64_t written_ = 0;               // rows in the file
  bool started_ = false;              // the file is this run's
  bool new_columns_ = false;
};

}  // namespace cairn::trainer
