// Optimizer: parameter groups, their states and the step over stretches of memory.
// Invariant: neighbouring parameters of a group with gradients and equal step counts are updated by
// one kernel call; a parameter without a gradient is left alone, as PyTorch does.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cairn/kernels/optim.h"
#include "cairn/optim/state.h"
#include "cairn/tensor/tensor.h"

namespace cairn::optim {

// Parameters with options of their own: optim::sgd({{{weights}, {.lr = 0.1}}, {{biases}, {.lr =
// 1}}}).
template <class Options>
struct ParamGroup {
  std::vector<Tensor> params;
  Options options;
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // "adam"
  const char* name() const { return name_; }

  // Updates every parameter that has a gradient.
  void step();
  // Calls closure (with recording on), steps, and returns what closure returned.
  Tensor step(const std::function<Tensor()>& closure);
  // Forgets all gradients.
  void zero_grad();

  size_t group_count() const { return groups_.size(); }
  std::vector<Tensor> parameters(size_t group) const;
  std::vector<Tensor> parameters() const;

  double lr(size_t group = 0) const { return const_cast<Optimizer*>(this)->lr_of(group); }
  // Not negative, finite.
  void set_lr(size_t group, double lr);
  // SGD's momentum, Adam's first beta.
  double momentum(size_t group = 0) const {
    return const_cast<Optimizer*>(this)->momentum_of(group);
  }
  void set_momentum(size_t group, double momentum);
  // The rate before the first schedule changed it. Schedules call it when they are made.
  double initial_lr(size_t group);

  // Keeps learning rates, momenta and step counts in tensors on the parameters' device, where the
  // kernels read them when they run: a step captured in a CUDA graph can be run again with other
  // ones. The results are the same bit for bit. The other options stay numbers of the call.
  // Switching on or off, state_dict and load_state_dict wait for the device. A captured step leaves
  // out what gradients and states of zeros cannot change; it no longer launches when that is over
  // (CapturedGraph::holds): after a load_state_dict, a write to a state, a momentum that was 0, or
  // another step that reached more.
  void set_capturable(bool capturable);
  bool capturable() const { return capturable_; }
  // A flag, f32 0-d, on the parameters' device: a step that finds anything but 0 in it when it runs
  // changes neither parameters nor states nor step counts. The optimizer must be capturable. An
  // undefined tensor ends it.
  void set_skip(const Tensor& flag);

  // By index of the parameter over all groups, as PyTorch: tensors "state.<index>.exp_avg" (aliases
  // of the optimizer's memory: whoever writes there by pointer calls bump_version), numbers
  // "state.<index>.step", "param_groups.<group>.lr" and the other options,
  // "param_groups.<group>.params" (their number).
  State state_dict();
  // Copies the state in. A state of other groups, parameters, shapes or names throws Error and
  // changes nothing.
  void load_state_dict(const State& state);

 protected:
  explicit Optimizer(const char* name) : name_(name) {}

  // Called once for each group, then finish().
  void add_params(std::vector<Tensor> params);
  // Checks the parameters and packs them into arenas.
  void finish();

  virtual double& lr_of(size_t group) = 0;
  virtual double& momentum_of(size_t group) = 0;
  // Options by name, as numbers; and back, checked.
  virtual std::map<std::string, double> options_of(size_t group) = 0;
  virtual void set_options(size_t group, const std::map<std::string, double>& options) = 0;
  // Throws unless set_options would take them.
  virtual void check_options(size_t group, const std::map<std::string, double>& options) = 0;
  // Names of the states that the group's parameters have.
  virtual std::span<const char* const> state_names(
      size_t group, const std::map<std::string, double>& options) = 0;
  // How many states the group's parameters have now (the length of state_names).
  virtual size_t state_count(size_t group) = 0;
  // Whether elements whose parameter, gradient and states are all 0 stay 0.
  virtual bool keeps_zero(size_t group) = 0;
  // Whether any parameter keeps its bits, and its states stay 0, where gradient and states are 0.
  virtual bool idles(size_t group) = 0;
  // The update; t counts the runs' steps, this one included. `from` is for the kernel.
  virtual void launch(size_t group, Device device, DType dtype, kernels::OptimRuns runs, int64_t t,
                      const kernels::StepNumbers& from) = 0;

 private:
  // The step count of slots that have always stepped together, on their device.
  struct Counter {
    Tensor steps;         // f64, 0-d
    int64_t members = 0;  // slots
    int64_t active = 0;   // of them, those with a gradient in the running step
  };
  struct Slot {
    Tensor param;
    int64_t steps = 0;           // capturable: those launched; read_steps sets those done
    Counter* counter = nullptr;  // capturable only
    Tensor states[kernels::kMaxOptimStates];
    kernels::ZeroPattern idle;  // zeros of gradient and states, which the last step left out
    // On the CPU, what idle was found from: the gradient's zeros, and number and versions of the
    // states.
    kernels::ZeroPattern looked_at;
    uint64_t looked_for = 0;
    // On a device: where all states still hold the zeros that they began with, as long as their
    // versions add up to this.
    kernels::ZeroPattern untouched;
    uint64_t untouched_for = kUnknown;

    static constexpr uint64_t kUnknown = ~uint64_t{0};
    uint64_t versions() const;
    void forget_idle() {
      idle.clear();
      looked_at.clear();
      untouched.clear();
      untouched_for = kUnknown;
    }
  };
  struct Group {
    std::vector<Slot> slots;
    std::vector<size_t> order;  // slots by address, so that neighbours meet
    std::optional<double> initial_lr;
    // Capturable: what the kernels read.
    std::vector<std::unique_ptr<Counter>> counters;
    std::vector<Tensor> lrs, momenta;  // f64, 0-d, one for each device
  };
  struct Batch;

  void step_group(size_t group, Batch& batch);
  void add_runs(const Slot& slot, const Tensor& grad, size_t states, int64_t gap, Batch& batch);
  void ensure_states(Group& group, Slot& slot, size_t count);
  void allocate_state(Group& group, const Slot& like, size_t k);
  void check_state(const State& state);
  // idle.cpp
  void find_idle(Slot& slot, size_t states, bool idles);
  void find_untouched(Slot& slot, size_t states, const kernels::ZeroPattern& zeros);
  void rely_on_states(const std::vector<Tensor>& idle) const;
  // capturable.cpp
  static bool steps_now(const Slot& slot);
  static Counter& add_counter(Group& group, Device device);
  static void write_number(Group& group, std::vector<Tensor>& where, double value);
  void write_numbers(size_t group);
  void write_steps(Group& group);
  void read_steps(Group& group);
  void advance(Group& group);
  kernels::StepNumbers numbers_for(const Group& group, const Slot& slot) const;

  const char* name_;
  std::vector<Group> groups_;
  bool capturable_ = false;
  Tensor skip_;
  // Counts what must keep a step that was captured before from running: some slot's `untouched`
  // became another, or other states take part.
  std::shared_ptr<uint64_t> touched_ = std::make_shared<uint64_t>(0);
  std::vector<kernels::OptimRun> runs_;  // reused, so that a steady step does not allocate
};

// What the optimizers share: options by group, seen as numbers. Options has lr and
//   template <class Fn> static void fields(Self&, Fn fn): calls fn("lr", field) for every option;
//   void check(const char* op) const: throws what is wrong with the values.
template <class Options>
class OptimizerWith : public Optimizer {
 public:
  const Options& options(size_t group = 0) const { return options_[group]; }

 protected:
  OptimizerWith(const char* name, std::vector<ParamGroup<Options>> groups) : Optimizer(name) {
    for (ParamGroup<Options>& group : groups) {
      group.options.check(name);
      add_params(std::move(group.params));
      options_.push_back(group.options);
    }
    finish();
  }

  double& lr_of(size_t group) override { return options_.at(group).lr; }
  std::map<std::string, double> options_of(size_t group) override {
    std::map<std::string, double> out;
    Options::fields(options_[group],
                    [&](const char* key, auto& field) { out[key] = static_cast<double>(field); });
    return out;
  }
  Options parse(size_t group, const std::map<std::string, double>& numbers) const {
    Options out = options_[group];
    Options::fields(out, [&](const char* key, auto& field) {
      const auto at = numbers.find(key);
      cairn::check(at != numbers.end(), name(), ": state must have the number param_groups.", group,
                   ".", key, ", got none");
      field = static_cast<std::remove_reference_t<decltype(field)>>(at->second);
    });
    return out;
  }
  void check_options(size_t group, const std::map<std::string, double>& numbers) override {
    parse(group, numbers).check(name());
  }
  void set_options(size_t group, const std::map<std::string, double>& numbers) override {
    options_[group] = parse(group, numbers);
  }

  std::vector<Options> options_;
};

namespace detail {
// `name: what must be finite and not negative, got …`
void check_not_negative(const char* name, const char* what, double value);
// `name: what must be at least 0 and below 1, got …`
void check_fraction(const char* name, const char* what, double value);
}  // namespace detail

}  // namespace cairn::optim
