// The check of indices against a size, without a wait.
// Invariant: the index's memory is only read; what is found is thrown at the host's next wait.
#include "cairn/kernels/cuda/axes.h"
#include "cairn/kernels/cuda/finding.cuh"
#include "cairn/kernels/indexing.h"

namespace cairn::kernels::cuda {
namespace {

template <class I>
struct OutOfRange {
  const I* index;
  int64_t size;
  bool flat;
  Axes<1> axes;

  __device__ int64_t value(int64_t i) const {
    return static_cast<int64_t>(index[flat ? i : axes.offsets(i).at[0]]);
  }
  __device__ bool operator()(int64_t i) const {
    const int64_t v = value(i);
    return v < 0 || v >= size;
  }
};

template <class I>
void check_index_as(Device device, In index, int64_t size, const Report& report) {
  const Axes<1> axes = row_major<1>(index.shape(), {&index.strides()});
  const OutOfRange<I> bad{index.data<I>(), size, axes.flat(0), axes};
  check_elements(device, index.numel(), bad, report);
}

void check_index_on_device(std::string_view op, std::string_view what, In index, int64_t size) {
  const Device device = index.device();
  const Report report = report_for(device, op, what, size, index.shape());
  if (index.dtype() == DType::i64)
    check_index_as<int64_t>(device, index, size, report);
  else
    check_index_as<int32_t>(device, index, size, report);
}

}  // namespace

void fill_check_index() { check_index.fill(DeviceType::cuda, check_index_on_device); }

}  // namespace cairn::kernels::cuda
