// ResidentData: which data sets can be kept on the device, and their epochs.
// Invariant: see resident.h.
#include "cairn/trainer/resident.h"

#include <algorithm>
#include <utility>

#include "cairn/data/image_dataset.h"
#include "cairn/kernels/feed.h"
#include "cairn/tensor/raw.h"
#include "cairn/trainer/overrides.h"

namespace cairn::trainer {
namespace {

// Whether samples and batches of `dataset` are made as those of `known`, an object of the class
// itself: a class that the user derived may do it otherwise.
bool made_as(const data::Dataset& dataset, const data::Dataset& known) {
  return same_function(dataset, known, &data::Dataset::size) &&
         same_function(dataset, known, &data::Dataset::get) &&
         same_function(dataset, known, &data::Dataset::get_random) &&
         same_function(dataset, known, &data::Dataset::collate);
}

const data::ImageDataset* as_images(const data::Dataset& dataset) {
  static const data::ImageDataset known(zeros({1, 1, 1}, {DType::u8}), zeros({1}, {DType::i64}));
  const auto* found = dynamic_cast<const data::ImageDataset*>(&dataset);
  return found != nullptr && made_as(dataset, known) ? found : nullptr;
}

const data::TensorDataset* as_tensors(const data::Dataset& dataset) {
  static const data::TensorDataset known(zeros({1}));
  const auto* found = dynamic_cast<const data::TensorDataset*>(&dataset);
  return found != nullptr && made_as(dataset, known) ? found : nullptr;
}

const data::Subset* as_subset(const data::Dataset& dataset) {
  static const data::Subset known(std::make_shared<data::TensorDataset>(zeros({1})), {0});
  const auto* found = dynamic_cast<const data::Subset*>(&dataset);
  return found != nullptr && made_as(dataset, known) ? found : nullptr;
}

Tensor moved(const Tensor& t, Device device) {
  return t.defined() ? raw::to(t, t.dtype(), device) : t;
}

int64_t bytes_of(const Tensor& t) { return t.defined() ? t.nbytes() : 0; }

bool is_rows(const Tensor& t) {
  return !t.defined() || (t.device() == kCPU && t.is_contiguous() && t.size(0) > 0);
}

}  // namespace

std::unique_ptr<ResidentData> ResidentData::make(data::DataLoader& loader, Device device,
                                                 int64_t max_bytes) {
  const data::DataLoaderOptions& options = loader.options();
  if (options.collate || options.num_workers > 0) return nullptr;
  std::unique_ptr<ResidentData> out(new ResidentData(loader));
  const data::Dataset* dataset = &loader.dataset();
  if (const data::Subset* subset = as_subset(*dataset)) {
    out->subset_ = subset->indices();
    dataset = &subset->dataset();
  }
  Tensor values, targets;
  const data::ImageDataset* images = as_images(*dataset);
  if (images != nullptr && images->table() != nullptr) {
    values = images->images();
    targets = images->targets();
  } else if (const data::TensorDataset* tensors = as_tensors(*dataset)) {
    values = tensors->input();
    targets = tensors->target();
    if (!is_rows(values)) return nullptr;
  }
  if (!values.defined() || !is_rows(targets) || bytes_of(values) + bytes_of(targets) > max_bytes)
    return nullptr;
  if (images != nullptr) {
    out->images_ = moved(values, device);
    const data::ByteTable& table = *images->table();
    out->table_ = moved(from_values(table.values, {table.channels, 256}), device);
  } else {
    out->rows_ = moved(values, device);
  }
  out->targets_ = moved(targets, device);
  out->cursor_ = zeros({}, {DType::i64, device});
  return out;
}

void ResidentData::begin_epoch() {
  const auto& batches = loader_->begin_indices();
  std::vector<int64_t> order;
  sizes_.clear();
  for (const std::vector<int64_t>& batch : batches) {
    for (const int64_t index : batch)
      order.push_back(subset_.empty() ? index : subset_[static_cast<size_t>(index)]);
    sizes_.push_back(static_cast<int64_t>(batch.size()));
  }
  done_ = loader_->state().batches_done;
  int64_t samples = 0;
  for (int64_t i = 0; i < done_; ++i) samples += sizes_[static_cast<size_t>(i)];
  const Shape shape{static_cast<int64_t>(order.size())};
  // Captured steps hold its address, and every epoch of a loader is equally long.
  if (!order_.defined() || order_.shape() != shape)
    order_ = empty(shape, {DType::i64, cursor_.device()});
  raw::copy_(order_, from_values(order, shape));
  raw::fill_(cursor_, static_cast<double>(samples));
}

int64_t ResidentData::alike() const {
  int64_t count = 0;
  while (count < left() && sizes_[static_cast<size_t>(done_ + count)] == next_size()) ++count;
  return count;
}

Batch ResidentData::make(int64_t size) const {
  const Device device = cursor_.device();
  Batch batch;
  if (images_.defined()) {
    batch.input =
        empty({size, table_.size(0), images_.size(1), images_.size(2)}, {DType::f32, device});
    kernels::gather_images(device, batch.input, images_, table_, order_, cursor_);
  }
  const auto gathered = [&](const Tensor& rows) {
    if (!rows.defined()) return Tensor();
    Shape shape = rows.shape();
    shape[0] = size;
    const Tensor out = empty(shape, {rows.dtype(), device});
    kernels::gather_rows(device, out, rows, order_, cursor_);
    return out;
  };
  if (!images_.defined()) batch.input = gathered(rows_);
  batch.target = gathered(targets_);
  kernels::advance_cursor(device, cursor_, size);
  return batch;
}

void ResidentData::pass(int64_t batches) {
  loader_->pass(batches);
  done_ += batches;
}

Batch ResidentData::next() {
  Batch batch = make(next_size());
  pass(1);
  return batch;
}

}  // namespace cairn::trainer
