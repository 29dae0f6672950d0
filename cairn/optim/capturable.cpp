// Optimizer: learning rates, momenta and step counts in memory of the parameters' device.
// Invariant: a step reads none of them on the host. Slots share a counter as long as they have
// always stepped together, which says that their counts are equal without looking at them.
#include <algorithm>

#include "cairn/optim/optimizer.h"
#include "cairn/tensor/raw.h"

namespace cairn::optim {

void Optimizer::set_capturable(bool capturable) {
  if (capturable == capturable_) return;
  check(capturable || !skip_.defined(), name_,
        ": capturable must stay on while steps can be skipped; call set_skip({}) first");
  for (size_t g = 0; g < groups_.size(); ++g) {
    Group& group = groups_[g];
    if (capturable) {
      write_numbers(g);
      write_steps(group);
      continue;
    }
    read_steps(group);
    for (Slot& slot : group.slots) slot.counter = nullptr;
    group.counters.clear();
    group.lrs.clear();
    group.momenta.clear();
  }
  capturable_ = capturable;
}

void Optimizer::set_skip(const Tensor& flag) {
  if (flag.defined()) {
    check(capturable_, name_,
          ": set_skip: optimizer must be capturable; call set_capturable(true)");
    check(flag.dtype() == DType::f32 && flag.numel() == 1, name_,
          ": set_skip: flag must be f32 with one element, got ", flag.dtype(), " ", flag.shape());
  }
  skip_ = flag;
}

Optimizer::Counter& Optimizer::add_counter(Group& group, Device device) {
  group.counters.push_back(std::make_unique<Counter>());
  group.counters.back()->steps = empty({}, {DType::f64, device});
  return *group.counters.back();
}

// Writes a number of the group where it lies already, so that captured steps see it.
void Optimizer::write_number(Group& group, std::vector<Tensor>& where, double value) {
  for (const Slot& slot : group.slots) {
    const Device device = slot.param.device();
    if (std::none_of(where.begin(), where.end(),
                     [&](const Tensor& t) { return t.device() == device; }))
      where.push_back(empty({}, {DType::f64, device}));
  }
  for (const Tensor& t : where) raw::fill_(t, value);
}

void Optimizer::write_numbers(size_t g) {
  write_number(groups_[g], groups_[g].lrs, lr_of(g));
  write_number(groups_[g], groups_[g].momenta, momentum_of(g));
}

// Writes the slots' counts, each into the counter it has where the other members' counts agree.
void Optimizer::write_steps(Group& group) {
  struct Place {
    const Counter* from;
    Device device;
    int64_t steps;
    Counter* counter;
  };
  std::vector<Place> places;
  for (const auto& counter : group.counters) counter->members = 0;
  for (Slot& slot : group.slots) {
    if (slot.param.numel() == 0) continue;
    const Device device = slot.param.device();
    const Counter* from = slot.counter;
    auto place = std::find_if(places.begin(), places.end(), [&](const Place& p) {
      return p.from == from && p.device == device && p.steps == slot.steps;
    });
    if (place == places.end()) {
      const bool taken =
          from == nullptr || from->steps.device() != device ||
          std::any_of(places.begin(), places.end(), [&](auto& p) { return p.from == from; });
      Counter& counter = taken ? add_counter(group, device) : *slot.counter;
      raw::fill_(counter.steps, static_cast<double>(slot.steps));
      place = places.insert(places.end(), {from, device, slot.steps, &counter});
    }
    slot.counter = place->counter;
    ++slot.counter->members;
  }
}

void Optimizer::read_steps(Group& group) {
  for (const auto& counter : group.counters) {
    const auto steps = counter->steps.item<int64_t>();
    for (Slot& slot : group.slots)
      if (slot.counter == counter.get()) slot.steps = steps;
  }
}

// Counts the step that is about to be launched. Members without a gradient stay behind, with the
// counter; the others go on with one of their own.
void Optimizer::advance(Group& group) {
  for (const auto& counter : group.counters) counter->active = 0;
  for (const Slot& slot : group.slots)
    if (steps_now(slot)) ++slot.counter->active;
  const size_t count = group.counters.size();
  for (size_t i = 0; i < count; ++i) {
    Counter* counter = group.counters[i].get();
    if (counter->active == 0) continue;
    const Device device = counter->steps.device();
    if (counter->active < counter->members) {
      Counter& ahead = add_counter(group, device);
      raw::copy_(ahead.steps, counter->steps);
      ahead.members = counter->active;
      counter->members -= counter->active;
      for (Slot& slot : group.slots)
        if (slot.counter == counter && steps_now(slot)) slot.counter = &ahead;
      counter = &ahead;
    }
    kernels::advance_steps(device, counter->steps, skip_);
  }
}

kernels::StepNumbers Optimizer::numbers_for(const Group& group, const Slot& slot) const {
  if (!capturable_) return {};
  const Device device = slot.param.device();
  const auto lr = std::find_if(group.lrs.begin(), group.lrs.end(),
                               [&](const Tensor& t) { return t.device() == device; });
  check(lr != group.lrs.end() && slot.counter->steps.device() == device, name_,
        ": parameters must stay on their device while the optimizer is capturable, got one on ",
        device);
  check(!skip_.defined() || skip_.device() == device, name_, ": set_skip: flag must be on ", device,
        " as the parameters, got ", skip_.defined() ? skip_.device() : device);
  const Tensor& momentum = group.momenta[static_cast<size_t>(lr - group.lrs.begin())];
  return {.lr = lr->data<double>(),
          .t = slot.counter->steps.data<double>(),
          .skip = skip_.defined() ? skip_.data<float>() : nullptr,
          .momentum = momentum.data<double>()};
}

}  // namespace cairn::optim
