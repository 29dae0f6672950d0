// The list of borrowed kernels.
#include "tests/cuda/borrowed.h"

#include "cairn/kernels/matmul.h"

namespace cairn::test {

void borrow_kernels() {
  borrow<kernels::matmul>();
  borrow<kernels::linear_fwd>();
  borrow<kernels::linear_bwd_activation>();
  borrow<kernels::sum_rows>();
}

}  // namespace cairn::test
