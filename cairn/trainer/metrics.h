// What log() keeps: values of the running step, means over the running epoch, and the three
// dictionaries that callbacks, loggers and the progress bar read.
// Invariant: logging a tensor reads nothing from its device; a value is read when somebody asks.
// Epoch means are summed where the values are: on the CPU at once, on a device by a kernel.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cairn/tensor/tensor.h"
#include "cairn/trainer/stage.h"
#include "cairn/trainer/value.h"

namespace cairn::trainer {

// How the values of an epoch's batches become one. mean weighs them by batch size.
enum class Reduce : uint8_t { mean, sum, min, max };
// "mean", ...
const char* name_of(Reduce how);
// Of two values, for min and max. NaN stays.
double extreme(Reduce how, double a, double b);

struct LogOptions {
  std::optional<bool> on_step = {};   // absent: by the hook (training batches yes, else no)
  std::optional<bool> on_epoch = {};  // absent: by the hook (training batches no, else yes)
  bool prog_bar = false;              // shown by the progress bar
  bool logger = true;                 // given to the loggers
  Reduce reduce_fx = Reduce::mean;
  // With several processes: the value becomes that of all. An epoch's is joined at its end, of
  // whatever each process saw: in evaluations some may have fewer batches, or none, and then also
  // lack the name; a mean weighs all batches. A step's weighs the processes alike and waits for
  // them, so that all must log it equally often and among their other such values at the same
  // place; another name or reduce_fx there is an Error on all.
  bool sync_dist = false;
  std::optional<int64_t> batch_size = {};  // weight in the mean; absent: the batch's own
};

using Metrics = std::map<std::string, double>;

class Strategy;

// A number, or a tensor with one element that is read when asked.
class LazyScalar {
 public:
  LazyScalar() = default;
  explicit LazyScalar(double value) : value_(value) {}
  explicit LazyScalar(const Tensor& value) : tensor_(value) {}
  double get() const {
    if (tensor_.defined()) {
      value_ = tensor_.item<double>();
      tensor_ = {};
    }
    return value_;
  }

 private:
  mutable double value_ = 0;
  mutable Tensor tensor_;
};

class MetricStore {
 public:
  MetricStore();
  ~MetricStore();

  // Where log() is being called from. `batch_size` 0: not in a batch.
  struct Context {
    Hook hook{"", LogRule::never};
    bool evaluating = false;
    int64_t batch_size = 0;
    // Of an evaluation: the fewest and the most batches that any process has.
    int64_t fewest_batches = 0, most_batches = 0;
  };
  Context context;
  // Joins what several processes logged with sync_dist; null: one process.
  Strategy* strategy = nullptr;

  // Tensors must have one element. Throws Error for a name that is empty, a hook that may not log,
  // a level the hook does not have, and options that differ from an earlier call of the same name.
  void log(std::string_view name, const Tensor& value, const LogOptions& options);
  void log(std::string_view name, double value, const LogOptions& options);

  struct Entry;
  // What one log() of a captured step did, to be done again at every launch.
  struct Record {
    Entry* entry = nullptr;
    Tensor value;  // a launch writes it anew
    double weight = 0;
  };
  // From here to stop_recording(), log() only notes what it would do, and the kernels it calls are
  // part of a captured step: it throws for values of the host, and for names that no earlier step
  // logged.
  void start_recording(std::vector<Record>& records);
  void stop_recording() { recording_ = nullptr; }
  bool recording() const { return recording_ != nullptr; }
  void replay(const Record& record);

  // Forgets the epoch's accumulations of the training (or evaluation) side.
  void begin_epoch(bool evaluating);
  // Forgets which values belong to the running batch.
  void begin_batch(bool evaluating);
  // The step values of the running batch that go to the loggers and were not asked for yet.
  Metrics step_metrics(bool evaluating);
  // Puts the epoch's values so far into the dictionaries. Called before the epoch-end hooks, which
  // read them, and again after, since they may have logged.
  void publish_epoch(bool evaluating);
  // Names of the epoch's values that are this process's alone.
  std::vector<std::string> local_names(bool evaluating) const;
  // The epoch's values that go to the loggers.
  Metrics epoch_metrics(bool evaluating) const;

  // Everything logged, by name; `x_step`, `x_epoch` and `x` where both levels were asked for.
  Metrics callback_metrics() const;
  std::optional<double> callback_metric(const std::string& name) const;
  // What was last given to the loggers.
  const Metrics& logged_metrics() const { return logged_; }
  Metrics progress_bar_metrics() const;
  void note_logged(const Metrics& metrics);

  // Drops everything (after the sanity check, and at the start of a run).
  void clear();

  // The dictionaries and the training epoch's accumulations, for a checkpoint inside an epoch.
  State state() const;
  void load_state(const State& state);

 private:
  template <class T>
  void log_value(std::string_view name, const T& value, const LogOptions& options);
  template <class T>
  void log_joined(Entry& entry, const T& value, bool on_epoch, const LogOptions& options);
  Entry& entry_of(std::string_view name, bool on_step, bool on_epoch, const LogOptions& options);
  void set_levels(Entry& entry, bool on_step, bool on_epoch, bool prog_bar, bool logger);
  static void set_last(Entry& entry, const LazyScalar& value);
  static void add(Entry& entry, double value, double weight);
  void add_on_device(Entry& entry, const Tensor& value, double weight);
  static void reset(Entry& entry);
  static void fold(Entry& entry);
  static double epoch_value(Entry& entry);
  static State tell(const Entry& entry);
  Entry& add_entry(const State& told);
  Entry& same_entry(const State& told, bool evaluating);
  void join_ranks(bool evaluating);
  static std::string step_name(const Entry& e);
  static std::string epoch_name(const Entry& e);

  std::vector<std::unique_ptr<Entry>> entries_;
  std::map<std::string, LazyScalar> published_;
  std::map<std::string, LazyScalar> bar_;
  Metrics logged_;
  std::vector<Record>* recording_ = nullptr;
};

}  // namespace cairn::trainer
