// ParameterArena: recognising, packing, and finding the runs.
#include "cairn/autograd/arena.h"

#include <algorithm>
#include <numeric>

#include "cairn/autograd/engine.h"
#include "cairn/tensor/raw.h"

namespace cairn {
namespace {

// Elements from one parameter's start to the next one's.
int64_t padded(int64_t numel, DType dtype) {
  const int64_t unit = kArenaAlignment / item_size(dtype);
  return (numel + unit - 1) / unit * unit;
}

std::vector<size_t> in_memory_order(const std::vector<Tensor>& tensors) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::less<void*>()(tensors[a].raw_data(), tensors[b].raw_data());
  });
  return order;
}

// Elements between the first and the last of `t`, both included.
int64_t extent(const Tensor& t) {
  if (t.numel() == 0) return 0;
  int64_t last = 0;
  for (size_t i = 0; i < t.shape().size(); ++i) last += (t.shape()[i] - 1) * t.strides()[i];
  return last + 1;
}

void check_parameters(const std::vector<Tensor>& parameters) {
  check(!parameters.empty(), "arena: parameters must number at least 1, got 0");
  const Tensor& first = parameters[0];
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Tensor& p = parameters[i];
    const AutogradMeta* meta = autograd_meta(p);
    check(meta != nullptr && meta->requires_grad && !meta->node, "arena: parameter ", i,
          " must be a leaf that requires a gradient, got ",
          meta != nullptr && meta->node ? "the output of an op" : "one that does not");
    check(p.dtype() == first.dtype() && p.device() == first.device(), "arena: parameter ", i,
          " must be ", first.dtype(), " on ", first.device(), " as the first, got ", p.dtype(),
          " on ", p.device());
  }
  const std::vector<size_t> order = in_memory_order(parameters);
  for (size_t i = 1; i < order.size(); ++i) {
    const Tensor& before = parameters[order[i - 1]];
    const Tensor& after = parameters[order[i]];
    const std::byte* end =
        static_cast<std::byte*>(before.raw_data()) + extent(before) * item_size(before.dtype());
    check(!before.same_as(after) && (extent(after) == 0 || extent(before) == 0 ||
                                     end <= static_cast<std::byte*>(after.raw_data())),
          "arena: parameters must not share memory, got parameters ",
          std::min(order[i - 1], order[i]), " and ", std::max(order[i - 1], order[i]),
          " on the same elements");
  }
}

// A 1-d view of elements [begin, end) of the block that `t` lies in.
Tensor flat_view(const Tensor& t, int64_t begin, int64_t end) {
  return Tensor(t.storage(), t.dtype(), {end - begin}, {1}, begin);
}

}  // namespace

ParameterArena::ParameterArena(std::span<const Tensor> parameters)
    : parameters_(parameters.begin(), parameters.end()) {
  check_parameters(parameters_);
  if (!adopt()) pack();
  find_runs();
}

// Recognises parameters that lie in one arena: one block for the data and another for the
// gradients, equal offsets, all aligned, all dense. Sets the views if so.
bool ParameterArena::adopt() {
  const Tensor& first = parameters_[0];
  const Tensor& first_grad = autograd_meta(first)->grad;
  if (!first_grad.defined() || first_grad.storage() == first.storage()) return false;
  const int64_t unit = kArenaAlignment / item_size(first.dtype());
  int64_t begin = first.offset();
  int64_t end = first.offset();
  for (const Tensor& p : parameters_) {
    const Tensor& grad = autograd_meta(p)->grad;
    if (!grad.defined() || p.storage() != first.storage() ||
        grad.storage() != first_grad.storage() || p.offset() != grad.offset() ||
        p.offset() % unit != 0 || !p.is_dense() || !(p.strides() == grad.strides()))
      return false;
    begin = std::min(begin, p.offset());
    end = std::max(end, p.offset() + p.numel());
  }
  // Blocks of the allocator are aligned; memory of somebody else may not be.
  if (reinterpret_cast<uintptr_t>(first.storage()->data()) % kArenaAlignment != 0) return false;
  for (const Tensor& p : parameters_) offsets_.push_back(p.offset() - begin);
  data_ = flat_view(first, begin, end);
  grads_ = flat_view(first_grad, begin, end);
  return true;
}

void ParameterArena::pack() {
  const DType dtype = parameters_[0].dtype();
  const Device device = parameters_[0].device();
  int64_t total = 0;
  for (const Tensor& p : parameters_) {
    offsets_.push_back(total);
    total = checked_add(total, padded(p.numel(), dtype), "arena");
  }
  data_ = zeros({total}, {dtype, device});
  grads_ = zeros({total}, {dtype, device});
  NoGrad no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Tensor& p = parameters_[i];
    const Shape strides = p.is_dense() ? p.strides() : contiguous_strides(p.shape());
    const Tensor data(data_.storage(), dtype, p.shape(), strides, offsets_[i]);
    raw::copy_(data, p);
    p.set_data(data);
    set_grad_memory(p, Tensor(grads_.storage(), dtype, p.shape(), strides, offsets_[i]), true);
  }
}

bool ParameterArena::is_whole() const {
  const int64_t end = data_.offset() + data_.numel();
  const int64_t rest = data_.storage()->bytes() - end * item_size(data_.dtype());
  return data_.offset() == 0 && rest < kArenaAlignment;
}

void ParameterArena::set_grads_memory(const Tensor& memory) {
  check(is_whole(), "set_grads_memory: arena must be a whole block, got a part of one");
  check(memory.shape() == data_.shape() && memory.is_contiguous() &&
            memory.dtype() == data_.dtype() && memory.device() == data_.device(),
        "set_grads_memory: memory must be contiguous ", data_.dtype(), " ", data_.shape(), " on ",
        data_.device(), ", got ", memory.dtype(), " ", memory.shape(), " on ", memory.device());
  check(reinterpret_cast<uintptr_t>(memory.raw_data()) % kArenaAlignment == 0,
        "set_grads_memory: memory must be aligned to 64 bytes");
  // A block of its own, so that offsets are those of the parameters, and so are the versions.
  const auto block = std::make_shared<Storage>(memory.raw_data(), memory.nbytes(), memory.device(),
                                               memory.storage());
  const NoGrad no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Tensor& p = parameters_[i];
    set_grad_memory(p, Tensor(block, p.dtype(), p.shape(), p.strides(), offsets_[i]), true);
  }
  grads_ = Tensor(block, data_.dtype(), data_.shape(), {1}, 0);
}

void ParameterArena::find_runs() {
  int64_t next = -1;  // where a neighbour of the running run would start
  for (size_t i : in_memory_order(parameters_)) {
    const int64_t numel = parameters_[i].numel();
    if (offsets_[i] != next) runs_.push_back({offsets_[i], 0});
    runs_.back().numel = offsets_[i] + numel - runs_.back().offset;
    next = offsets_[i] + padded(numel, parameters_[i].dtype());
  }
}

std::vector<ParameterArena> pack_parameters(std::span<const Tensor> parameters) {
  std::vector<std::vector<Tensor>> groups;
  for (const Tensor& p : parameters) {
    if (!requires_grad(p)) continue;
    auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& g) {
      return g[0].dtype() == p.dtype() && g[0].device() == p.device();
    });
    if (group == groups.end()) group = groups.emplace(groups.end());
    group->push_back(p);
  }
  std::vector<ParameterArena> arenas;
  for (const auto& group : groups) {
    const void* before = group[0].storage().get();
    arenas.emplace_back(group);
    if (group[0].storage().get() == before) continue;
    // The parameters' old blocks are of sizes that nothing else has.
    const Device device = group[0].device();
    backend_of(device.type, "pack_parameters").allocator(device)->release_cached();
  }
  return arenas;
}

}  // namespace cairn
