// Optimizer: packing, the step, saving and loading.
#include "cairn/optim/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "cairn/autograd/arena.h"
#include "cairn/autograd/engine.h"
#include "cairn/tensor/capture.h"
#include "cairn/tensor/raw.h"

namespace cairn::optim {
namespace {

// Elements that a parameter's alignment takes; states follow the parameter's, so that neighbours in
// one are neighbours in the other.
int64_t unit_of(DType dtype) { return kArenaAlignment / item_size(dtype); }

DType state_dtype(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

// Whether `after` starts `gap` elements past the end of `before`, in the same block.
bool follows(const Tensor& before, const Tensor& after, int64_t numel, int64_t gap) {
  return before.storage() == after.storage() && after.offset() == before.offset() + numel + gap;
}

// Element i of the memory, counted from the tensor's first.
void* at(const Tensor& t, int64_t i) {
  return static_cast<std::byte*>(t.raw_data()) + i * item_size(t.dtype());
}

std::string key(const char* kind, size_t index, const std::string& name) {
  return cat(kind, ".", index, ".", name);
}

}  // namespace

namespace detail {

void check_not_negative(const char* name, const char* what, double value) {
  check(std::isfinite(value) && value >= 0, name, ": ", what,
        " must be finite and not negative, got ", value);
}

void check_fraction(const char* name, const char* what, double value) {
  check(value >= 0 && value < 1, name, ": ", what, " must be at least 0 and below 1, got ", value);
}

}  // namespace detail

// The runs collected so far that one launch can take, and the last parameter among them.
struct Optimizer::Batch {
  const Slot* last = nullptr;
  Tensor last_grad;
  bool open = false;           // the last run reaches the last parameter's end
  std::vector<Tensor> idle;    // states of which something is left out
  std::vector<Tensor> copies;  // gradients brought to their parameter's layout
};

void Optimizer::add_params(std::vector<Tensor> params) {
  Group group;
  for (Tensor& p : params) {
    check(p.defined() && is_floating(p.dtype()), name_,
          ": parameters must be floating tensors, got ",
          p.defined() ? name_of(p.dtype()) : std::string_view("an undefined tensor"));
    const AutogradMeta* meta = autograd_meta(p);
    check(meta == nullptr || !meta->node, name_, ": parameters must be leaves, got the output of ",
          meta != nullptr && meta->node ? meta->node->name : "");
    Slot slot;
    slot.param = std::move(p);
    group.slots.push_back(std::move(slot));
  }
  groups_.push_back(std::move(group));
}

void Optimizer::finish() {
  const std::vector<Tensor> all = parameters();
  check(!all.empty(), name_, ": parameters must number at least 1, got 0");
  std::set<const void*> seen;
  for (const Tensor& p : all)
    check(seen.insert(p.id()).second, name_, ": parameters must be given once, got one twice");
  pack_parameters(all);
  for (const Tensor& p : all)
    if (!p.is_dense()) p.set_data(raw::clone(p));  // a frozen one, which no arena takes
  for (Group& group : groups_) {
    group.order.resize(group.slots.size());
    std::iota(group.order.begin(), group.order.end(), size_t{0});
    std::stable_sort(group.order.begin(), group.order.end(), [&](size_t a, size_t b) {
      return std::less<void*>()(group.slots[a].param.raw_data(), group.slots[b].param.raw_data());
    });
  }
}

std::vector<Tensor> Optimizer::parameters(size_t group) const {
  std::vector<Tensor> out;
  for (const Slot& slot : groups_.at(group).slots) out.push_back(slot.param);
  return out;
}

std::vector<Tensor> Optimizer::parameters() const {
  std::vector<Tensor> out;
  for (const Group& group : groups_)
    for (const Slot& slot : group.slots) out.push_back(slot.param);
  return out;
}

void Optimizer::set_lr(size_t group, double lr) {
  detail::check_not_negative(name_, "lr", lr);
  if (lr_of(group) == lr) return;
  lr_of(group) = lr;
  if (capturable_) write_number(groups_[group], groups_[group].lrs, lr);
}

void Optimizer::set_momentum(size_t group, double momentum) {
  detail::check_fraction(name_, "momentum", momentum);
  if (momentum_of(group) == momentum) return;
  // SGD has a state with momentum, and none without.
  if (momentum == 0 || momentum_of(group) == 0) ++*touched_;
  momentum_of(group) = momentum;
  if (!capturable_) return;
  write_number(groups_[group], groups_[group].momenta, momentum);
  // The next step may be captured, and must find its states.
  for (Slot& slot : groups_[group].slots)
    if (requires_grad(slot.param)) ensure_states(groups_[group], slot, state_count(group));
}

double Optimizer::initial_lr(size_t group) {
  std::optional<double>& initial = groups_.at(group).initial_lr;
  if (!initial) initial = lr(group);
  return *initial;
}

void Optimizer::zero_grad() {
  for (const Group& group : groups_)
    for (const Slot& slot : group.slots) cairn::zero_grad(slot.param);
}

// --- the step
// --------------------------------------------------------------------------------------

void Optimizer::step() {
  NoGrad no_grad;
  Batch batch;
  for (size_t g = 0; g < groups_.size(); ++g) step_group(g, batch);
  rely_on_states(batch.idle);
}

Tensor Optimizer::step(const std::function<Tensor()>& closure) {
  const bool before = grad_enabled();
  set_grad_enabled(true);
  struct Restore {
    bool before;
    ~Restore() { set_grad_enabled(before); }
  } restore{before};
  const Tensor result = closure();
  step();
  return result;
}

void Optimizer::step_group(size_t g, Batch& batch) {
  Group& group = groups_[g];
  const size_t count = state_count(g);
  // Without states a step leaves nothing behind that a later one would have to know.
  const int64_t counted = count > 0 ? 1 : 0;
  const bool gaps = keeps_zero(g);
  const bool may_idle = idles(g);
  batch.last = nullptr;
  runs_.clear();
  if (capturable_ && count > 0) advance(group);
  const auto flush = [&] {
    if (runs_.empty()) return;
    launch(g, batch.last->param.device(), batch.last->param.dtype(), runs_, batch.last->steps,
           numbers_for(group, *batch.last));
    runs_.clear();
  };
  for (size_t index : group.order) {
    Slot& slot = group.slots[index];
    const Tensor& p = slot.param;
    if (!steps_now(slot)) continue;
    Tensor grad = autograd_meta(p)->grad;
    const bool direct = grad.strides() == p.strides() && grad.device() == p.device();
    if (!direct) {
      const Tensor copy = empty_strided(p.shape(), p.strides(), {p.dtype(), p.device()});
      raw::copy_(copy, grad);
      batch.copies.push_back(copy);
      grad = copy;
    }
    ensure_states(group, slot, count);
    find_idle(slot, count, may_idle && direct);
    const Slot* last = batch.last;
    const bool same = last != nullptr && last->counter == slot.counter &&
                      (capturable_ || last->steps == slot.steps + counted) &&
                      last->param.dtype() == p.dtype() && last->param.device() == p.device();
    if (!same) flush();
    // Joins the run before where parameter, gradient and states all go on at the same distance.
    bool joined = same && batch.open && !runs_.empty();
    int64_t gap = 0;
    if (joined) {
      const int64_t numel = last->param.numel();
      gap = p.offset() - last->param.offset() - numel;
      joined = gap >= 0 && gap < unit_of(p.dtype()) && (gap == 0 || gaps) &&
               (gap == 0 || p.offset() % unit_of(p.dtype()) == 0) &&
               follows(last->param, p, numel, gap) && follows(batch.last_grad, grad, numel, gap);
      for (size_t k = 0; joined && k < count; ++k)
        joined = follows(last->states[k], slot.states[k], numel, gap);
    }
    add_runs(slot, grad, count, joined ? gap : -1, batch);
    slot.steps += counted;
    p.bump_version(name_);
    batch.last = &slot;
    batch.last_grad = std::move(grad);
  }
  flush();
}

// Adds what the step does of a slot to the runs. `gap`: elements between the last run and it, where
// that run goes on; else negative.
void Optimizer::add_runs(const Slot& slot, const Tensor& grad, size_t states, int64_t gap,
                         Batch& batch) {
  const Tensor& p = slot.param;
  batch.open = false;
  kernels::for_each_rest(slot.idle, p.numel(), [&](const kernels::Rest& rest) {
    if (gap >= 0 && rest.begin == 0 && rest.count == 1) {
      runs_.back().numel += gap + rest.length;
    } else {
      kernels::OptimRun run{.param = at(p, rest.begin),
                            .grad = at(grad, rest.begin),
                            .numel = rest.length * rest.count};
      for (size_t k = 0; k < states; ++k) run.state[k] = at(slot.states[k], rest.begin);
      if (rest.count > 1) {
        run.piece = rest.length;
        run.step = rest.step;
      }
      runs_.push_back(run);
    }
    batch.open = rest.count == 1 && rest.begin + rest.length == p.numel();
  });
  if (!slot.idle.empty() && p.device() != kCPU)
    batch.idle.insert(batch.idle.end(), slot.states, slot.states + states);
}

bool Optimizer::steps_now(const Slot& slot) {
  const AutogradMeta* meta = autograd_meta(slot.param);
  return meta != nullptr && meta->has_grad && slot.param.numel() > 0;
}

// Makes the slot's first `count` states exist in the parameter's layout and on its device.
void Optimizer::ensure_states(Group& group, Slot& slot, size_t count) {
  const Tensor& p = slot.param;
  for (size_t k = 0; k < count; ++k) {
    Tensor& state = slot.states[k];
    if (!state.defined()) allocate_state(group, slot, k);
    if (state.strides() == p.strides() && state.device() == p.device()) continue;
    const Tensor moved = empty_strided(p.shape(), p.strides(), {state.dtype(), p.device()});
    raw::copy_(moved, state);
    state = moved;
    slot.forget_idle();
  }
}

// One block of zeros for state k of all parameters of the group that lack it and are like `like`.
void Optimizer::allocate_state(Group& group, const Slot& like, size_t k) {
  const DType dtype = like.param.dtype();
  const Device device = like.param.device();
  check(Capture::current(device) == nullptr, name_,
        ": states must be there before a step is captured, got none; run one step first");
  const int64_t unit = unit_of(dtype);
  std::vector<std::pair<Slot*, int64_t>> places;
  int64_t total = 0;
  for (size_t index : group.order) {
    Slot& slot = group.slots[index];
    const Tensor& p = slot.param;
    const bool wanted = &slot == &like || requires_grad(p);
    if (!wanted || slot.states[k].defined() || p.dtype() != dtype || p.device() != device) continue;
    places.emplace_back(&slot, total);
    total += (p.numel() + unit - 1) / unit * unit;
  }
  const Tensor block = zeros({total}, {state_dtype(dtype), device});
  for (const auto& [slot, offset] : places) {
    const bool known = k == 0 || slot->untouched_for == slot->versions();
    slot->states[k] =
        Tensor(block.storage(), block.dtype(), slot->param.shape(), slot->param.strides(), offset);
    if (k == 0) slot->untouched = {{{0, slot->param.numel()}}};
    if (known) slot->untouched_for = slot->versions();
  }
}

// --- saving and loading
// ----------------------------------------------------------------------------

State Optimizer::state_dict() {
  State out;
  size_t index = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    read_steps(groups_[g]);
    const auto options = options_of(g);
    for (const auto& [name, value] : options) out.numbers[key("param_groups", g, name)] = value;
    if (groups_[g].initial_lr)
      out.numbers[key("param_groups", g, "initial_lr")] = *groups_[g].initial_lr;
    out.numbers[key("param_groups", g, "params")] = static_cast<double>(groups_[g].slots.size());
    const auto names = state_names(g, options);
    for (Slot& slot : groups_[g].slots) {
      // Whoever holds the states may write to them; on a device the versions tell.
      if (slot.param.device() == kCPU) slot.forget_idle();
      if (slot.steps > 0) {
        out.numbers[key("state", index, "step")] = static_cast<double>(slot.steps);
        ensure_states(groups_[g], slot, names.size());
        for (size_t k = 0; k < names.size(); ++k)
          out.tensors[key("state", index, names[k])] = slot.states[k];
      }
      ++index;
    }
  }
  return out;
}

namespace {

// The options of group g among the state's numbers.
std::map<std::string, double> group_numbers(const State& state, size_t g) {
  const std::string prefix = key("param_groups", g, "");
  std::map<std::string, double> out;
  for (auto at = state.numbers.lower_bound(prefix);
       at != state.numbers.end() && at->first.compare(0, prefix.size(), prefix) == 0; ++at)
    out[at->first.substr(prefix.size())] = at->second;
  return out;
}

}  // namespace

void Optimizer::check_state(const State& state) {
  size_t known_numbers = 0, known_tensors = 0, index = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const double given = state.number(name_, key("param_groups", g, "params"));
    check(given == static_cast<double>(groups_[g].slots.size()), name_, ": state must have ",
          groups_[g].slots.size(), " parameters in group ", g, ", got ", given);
    const auto numbers = group_numbers(state, g);
    check_options(g, numbers);
    known_numbers += options_of(g).size() + 1 + numbers.count("initial_lr");
    const auto names = state_names(g, numbers);
    for (const Slot& slot : groups_[g].slots) {
      const size_t i = index++;
      const auto step = state.numbers.find(key("state", i, "step"));
      if (step == state.numbers.end()) continue;
      ++known_numbers;
      check(step->second >= 1 && step->second == std::floor(step->second) && step->second < 0x1p53,
            name_, ": state.", i, ".step must be a positive whole number, got ", step->second);
      for (const char* name : names) {
        const auto at = state.tensors.find(key("state", i, name));
        check(at != state.tensors.end(), name_, ": state must have the tensor state.", i, ".", name,
              ", got none");
        const Tensor& tensor = at->second;
        check(tensor.shape() == slot.param.shape() && is_floating(tensor.dtype()), name_,
              ": state.", i, ".", name, " must be floating of shape ", slot.param.shape(), ", got ",
              tensor.dtype(), " ", tensor.shape());
        ++known_tensors;
      }
    }
  }
  check(known_numbers == state.numbers.size() && known_tensors == state.tensors.size(), name_,
        ": state must have ", known_numbers, " numbers and ", known_tensors, " tensors, got ",
        state.numbers.size(), " and ", state.tensors.size(), "; is it another optimizer's?");
}

void Optimizer::load_state_dict(const State& state) {
  check_state(state);
  ++*touched_;
  size_t index = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    Group& group = groups_[g];
    const auto numbers = group_numbers(state, g);
    set_options(g, numbers);
    const auto initial = numbers.find("initial_lr");
    if (initial != numbers.end()) group.initial_lr = initial->second;
    const auto names = state_names(g, numbers);
    for (Slot& slot : group.slots) {
      const size_t i = index++;
      const auto step = state.numbers.find(key("state", i, "step"));
      slot.steps = step == state.numbers.end() ? 0 : static_cast<int64_t>(step->second);
      if (slot.steps == 0) {
        for (const Tensor& s : slot.states)
          if (s.defined()) raw::fill_(s, 0);
        slot.forget_idle();
        slot.untouched = {{{0, slot.param.numel()}}};
        slot.untouched_for = slot.versions();
        continue;
      }
      ensure_states(group, slot, names.size());
      for (size_t k = 0; k < names.size(); ++k)
        raw::copy_(slot.states[k], state.tensors.at(key("state", i, names[k])));
      slot.forget_idle();  // last: states that were made just now are no longer zeros
    }
    if (!capturable_) continue;
    write_numbers(g);
    write_steps(group);
  }
}

}  // namespace cairn::optim
