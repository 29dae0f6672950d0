// Optimizer: what a step leaves out, because it would change nothing.
// Invariant: where the gradient and all states hold +0 before a step, and idles() is true, the step
// would leave parameter and states as they are, bit for bit; only there is something left out.
#include <algorithm>
#include <cstring>

#include "cairn/autograd/engine.h"
#include "cairn/optim/optimizer.h"
#include "cairn/tensor/capture.h"
#include "cairn/tensor/raw.h"

namespace cairn::optim {
namespace {

// Whether elements [begin, end) of the memory, and of every further period, are all +0.
bool holds_zeros(const Tensor& t, kernels::ZeroRange range, int64_t period) {
  const auto* memory = static_cast<const std::byte*>(t.raw_data());
  const int64_t size = item_size(t.dtype());
  const int64_t span = period > 0 ? period : t.numel();
  for (int64_t start = 0; start < t.numel(); start += span) {
    const std::byte* first = memory + (start + range.begin) * size;
    const std::byte* last = memory + (start + range.end) * size;
    // Equal to itself one byte on, and 0 at the start.
    if (*first != std::byte{0} || std::memcmp(first, first + 1, last - first - 1) != 0)
      return false;
  }
  return true;
}

// Of the ranges, those in which all of the states hold zeros. The states must be on the CPU.
kernels::ZeroPattern zeros_of_all(std::span<const Tensor> states,
                                  const kernels::ZeroPattern& zeros) {
  kernels::ZeroPattern out;
  for (const kernels::ZeroRange& range : zeros.ranges)
    if (std::all_of(states.begin(), states.end(),
                    [&](const Tensor& s) { return holds_zeros(s, range, zeros.period); }))
      out.append(range);
  if (!out.empty()) out.period = zeros.period;
  return out;
}

// A dense tensor's memory.
Tensor flat(const Tensor& t) {
  return Tensor(t.storage(), t.dtype(), {t.numel()}, {1}, t.offset());
}

}  // namespace

// Sets slot.idle to the zeros of the gradient where the states are zeros as well. On the CPU they
// are looked at when something changed; what a step leaves out stays as it is.
void Optimizer::find_idle(Slot& slot, size_t states, bool idles) {
  static const kernels::ZeroPattern none;
  const kernels::ZeroPattern& zeros = idles ? grad_zeros(slot.param) : none;
  if (slot.param.device() != kCPU) return find_untouched(slot, states, zeros);
  uint64_t looking_for = states << 32;
  for (size_t k = 0; k < states; ++k) looking_for += slot.states[k].version();
  if (zeros == slot.looked_at && looking_for == slot.looked_for) return;
  slot.looked_at = zeros;
  slot.looked_for = looking_for;
  // Fresh states need not be looked at, which would make the system map their pages.
  const bool known = states > 0 && slot.untouched_for == slot.versions();
  slot.idle = known && contains(slot.untouched, zeros, slot.param.numel())
                  ? zeros
                  : zeros_of_all({slot.states, states}, zeros);
  if (known) slot.untouched = slot.idle;  // this step writes the rest
}

// The same on another device, whose memory cannot be looked at without waiting. What the states
// hold is known from the zeros that they began with and the steps since then. Where that was lost,
// by a state that was loaded or written, they are looked at once; a capture cannot.
void Optimizer::find_untouched(Slot& slot, size_t states, const kernels::ZeroPattern& zeros) {
  if (states == 0) {
    slot.idle = zeros;
    return;
  }
  const uint64_t versions = slot.versions();
  const bool known = slot.untouched_for == versions;
  if (known && slot.untouched == zeros && slot.idle == zeros) return;
  if (!known) {
    slot.untouched.clear();
    slot.untouched_for = versions;
    ++*touched_;
    if (!zeros.empty() && Capture::current(slot.param.device()) == nullptr) {
      std::vector<Tensor> seen;
      for (size_t k = 0; k < states; ++k)
        seen.push_back(raw::to(flat(slot.states[k]), slot.states[k].dtype(), kCPU));
      slot.untouched = zeros_of_all(seen, zeros);
    }
  }
  slot.idle = intersection(slot.untouched, zeros, slot.param.numel());
  if (slot.untouched == slot.idle) return;
  slot.untouched = slot.idle;  // this step writes the rest
  ++*touched_;
}

uint64_t Optimizer::Slot::versions() const {
  uint64_t sum = 0;
  for (const Tensor& state : states)
    if (state.defined()) sum += state.version();
  return sum;
}

// A captured step must not run once the states it leaves alone are no longer zeros.
void Optimizer::rely_on_states(const std::vector<Tensor>& idle) const {
  Capture* const capture = Capture::current(groups_[0].slots[0].param.device());
  if (capture == nullptr) return;
  std::vector<uint32_t> versions;
  for (const Tensor& state : idle) versions.push_back(state.version());
  capture->rely_on(
      {"an optimizer's states", [states = idle, versions, touched = touched_, before = *touched_] {
         for (size_t i = 0; i < states.size(); ++i)
           if (states[i].version() != versions[i]) return false;
         return *touched == before;
       }});
}

}  // namespace cairn::optim
