// Indices out of range, found by kernels and thrown at the next wait.
#include "cairn/kernels/indexing.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/cuda/emulator/emulator_control.h"

using namespace cairn;

namespace {

const Device kGpu(DeviceType::cuda, 0);

std::string error_at_wait() {
  try {
    cuda::synchronize(kGpu);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// What the CPU says at once and the device at the next wait.
std::pair<std::string, std::string> errors_of(const Tensor& index, int64_t size) {
  std::string cpu;
  try {
    kernels::check_index(kCPU, "gather", "index", index, size);
  } catch (const Error& error) {
    cpu = error.what();
  }
  const int64_t before = cuda::waits();
  kernels::check_index(kGpu, "gather", "index", raw::to(index, index.dtype(), kGpu), size);
  CHECK(cuda::waits() == before);
  return {cpu, error_at_wait()};
}

}  // namespace

TEST_CASE("cuda: the first wrong index is thrown at the next wait, in the CPU's words") {
  for (int64_t n : {int64_t{1}, int64_t{33}, int64_t{1025}, int64_t{40000}})
    for (DType dtype : {DType::i64, DType::i32})
      for (bool backwards : {false, true}) {
        INFO(n << " " << name_of(dtype));
        emulator::set_backwards(backwards);
        const Tensor index = zeros({n}, {dtype});
        CHECK(errors_of(index, 1) == std::pair<std::string, std::string>());
        for (int64_t at : {n - 1, n / 2, n / 3}) {
          raw::fill_(raw::slice(index, 0, at, at + 1), at % 2 == 0 ? 5 : -3);
          const auto [cpu, gpu] = errors_of(index, 5);
          CHECK(!cpu.empty());
          CHECK(gpu == cpu);
          CHECK(error_at_wait().empty());
        }
        emulator::set_backwards(false);
      }
}

TEST_CASE("cuda: a wrong index's position follows the index's shape") {
  const Tensor flat = zeros({24}, {DType::i64});
  flat.data<int64_t>()[17] = 9;
  flat.data<int64_t>()[19] = 8;
  const Tensor cube = raw::view(flat, {2, 3, 4});
  CHECK(errors_of(cube, 3).second ==
        "gather: index must be in [0, 3), got 9 at position [1, 1, 1]");
  const auto [cpu, gpu] = errors_of(raw::transpose(cube, 0, 2), 3);
  CHECK(gpu == "gather: index must be in [0, 3), got 9 at position [1, 1, 1]");
  CHECK(gpu == cpu);
  CHECK(errors_of(raw::select(flat, 0, 17), 3).second ==
        "gather: index must be in [0, 3), got 9 at position 0");
  CHECK(errors_of(zeros({2, 0}, {DType::i64}), 0).second.empty());
}

TEST_CASE("cuda: of several wrong indices the first that was checked is thrown, and once") {
  const Tensor bad = full({3}, 7, {DType::i64, kGpu});
  kernels::check_index(kGpu, "first", "index", bad, 7);
  kernels::check_index(kGpu, "second", "index", bad, 2);
  CHECK(error_at_wait() == "first: index must be in [0, 7), got 7 at position 0");
  CHECK(error_at_wait().empty());
  CHECK(raw::select(bad, 0, 1).item<int64_t>() == 7);
}
