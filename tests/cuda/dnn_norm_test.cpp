// Batch norms by the emulated cuDNN: what they compute, when it is taken, and what the installed
// library says to the same graphs.
#include "cairn/kernels/cuda/dnn_norm.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

#include "cairn/tensor/capture.h"
#include "cairn/tensor/cuda.h"
#include "check/op_table.h"
#include "tests/cuda/batch_norm.h"
#include "tests/cuda/emulator/fake_dnn.h"
#include "tests/cuda/h100.h"
#include "tests/parity/resnet_check.h"

using namespace cairn;
using namespace cairn::both;
using kernels::Dst;

namespace {

void forget_plans() { kernels::cuda::set_dnn_api(&emulator::fake_dnn()); }
int64_t norms() { return emulator::dnn_log().norms; }

class Settings {
 public:
  explicit Settings(bool always) {
    forget_plans();
    kernels::cuda::set_norms_by_dnn(always);
  }
  ~Settings() {
    kernels::cuda::set_norms_by_dnn(false);
    cuda::settings().benchmark = false;
    emulator::set_known_engines(emulator::Known::all);
    emulator::refuse_running(false);
    emulator::set_elapsed({});
    forget_plans();
  }
};

// Where gradients go; `add` says to which of them.
struct Gradients {
  Tensor dx, dresidual, dw, db;
};
Gradients backward(const BatchNorm& n, const Tensor& dy, bool residual, bool relu, bool add) {
  const auto start = [&](const Tensor& like, uint64_t seed) {
    return raw::to(noise(like.shape(), like.dtype(), seed), like.dtype(), like.device());
  };
  Gradients g{start(n.x, 11), residual ? start(n.x, 12) : Tensor{}, start(n.w, 13), start(n.b, 14)};
  kernels::ZeroPattern zeros{{{0, 4}}};
  kernels::batch_norm_bwd(n.x.device(), Dst{g.dx, false, &zeros}, Dst{g.dresidual, false, nullptr},
                          Dst{g.dw, add, nullptr}, Dst{g.db, false, nullptr}, n.work, n.coef, dy,
                          n.x, residual ? n.y : Tensor{}, n.w, n.b, n.mean, n.rstd, relu, true);
  CHECK((n.x.device() != kGpu || zeros.empty()));
  return g;
}

// Of gradients that are sums of `rows` terms in f32, with statistics that were rounded to f32
// before a deviation was multiplied by `rstd`; then rounded to `dtype`.
double gradient_tolerance(DType dtype, int64_t rows, double rstd) {
  const double eps = dtype == DType::f32 ? 0x1p-24 : dtype == DType::f16 ? 0x1p-11 : 0x1p-8;
  return 4 * eps + 0x1p-24 * 8 * std::sqrt(static_cast<double>(rows)) * (1 + rstd);
}

void check_gradients(const BatchNorm& gpu, const BatchNorm& cpu, bool residual, bool relu,
                     bool add) {
  const Tensor dy = noise(cpu.x.shape(), cpu.x.dtype(), 20);
  const int64_t rows = cpu.x.numel() / cpu.x.size(1);
  const Gradients a = backward(gpu, on_gpu(dy), residual, relu, add);
  const Gradients b = backward(cpu, dy, residual, relu, add);
  const double rstd =
      *std::max_element(cpu.rstd.data<double>(), cpu.rstd.data<double>() + cpu.rstd.numel());
  const double allowed = gradient_tolerance(cpu.x.dtype(), rows, rstd);
  CHECK(difference(a.dx, b.dx) <= allowed);
  if (residual) CHECK(difference(a.dresidual, b.dresidual) <= allowed);
  const double sums =
      gradient_tolerance(cpu.w.dtype(), rows, rstd) * std::sqrt(static_cast<double>(rows));
  CHECK(difference(a.dw, b.dw) <= sums);
  CHECK(difference(a.db, b.db) <= sums);
}

// How many norms the library computes for a forward pass, and then for a backward one.
int64_t forward_norms(Shape2 shape, DType dtype, bool residual = true, bool relu = true) {
  const BatchNorm cpu(shape, dtype, DType::f32, residual), gpu(cpu, kGpu);
  const int64_t before = norms();
  cpu.forward(relu);
  gpu.forward(relu);
  check_outputs(gpu, cpu);
  return norms() - before;
}

}  // namespace

TEST_CASE("cuda: batch norm by cuDNN is the CPU's") {
  const Settings restored(true);
  for (const auto& [dtype, vectors] :
       {std::pair{DType::f32, DType::f32}, std::pair{DType::bf16, DType::f32},
        std::pair{DType::bf16, DType::bf16}, std::pair{DType::f16, DType::f32},
        std::pair{DType::f16, DType::f16}})
    for (const Shape2 shape : {Shape2{2, 8}, Shape2{300, 40}, Shape2{2100, 16}})
      for (bool residual : {false, true})
        for (bool relu : {false, true}) {
          INFO(name_of(dtype) << " with " << name_of(vectors) << ", " << shape.rows << " x "
                              << shape.channels << " residual " << residual << " relu " << relu);
          const BatchNorm cpu(shape, dtype, vectors, residual), gpu(cpu, kGpu);
          int64_t before = norms();
          cpu.forward(relu);
          gpu.forward(relu);
          CHECK(norms() - before == (relu || !residual ? 1 : 0));
          check_outputs(gpu, cpu);
          // From the same forward, so that relu cuts at the same places.
          for (const auto& [to, from] : {std::pair{gpu.y, cpu.y}, std::pair{gpu.mean, cpu.mean},
                                         std::pair{gpu.rstd, cpu.rstd}})
            raw::copy_(to, from);
          before = norms();
          check_gradients(gpu, cpu, residual, relu, residual);
          // relu's output is there where a residual was, and has a gradient of its own behind relu.
          CHECK(norms() - before == (relu == residual ? 1 : 0));
        }
  CHECK(emulator::guard_violations() == 0);
}

TEST_CASE("cuda: cuDNN is taken for batch norms beyond half of L2 that fit it") {
  const Settings restored(false);
  CHECK(forward_norms({4100, 64}, DType::bf16) == 1);  // L2 is 1 MiB here
  CHECK(forward_norms({4100, 64}, DType::f32) == 1);
  CHECK(forward_norms({4000, 64}, DType::bf16) == 0);   // both passes find it there
  CHECK(forward_norms({2048, 136}, DType::bf16) == 0);  // one launch of the own kernel
  CHECK(forward_norms({4400, 60}, DType::bf16) == 0);   // channels not in whole groups
  CHECK(forward_norms({4400, 60}, DType::f32) == 1);
  CHECK(forward_norms({4100, 64}, DType::f64) == 0);
  CHECK(forward_norms({4100, 64}, DType::bf16, true, false) == 0);  // a sum without relu
  const BatchNorm gpu(BatchNorm({4100, 64}, DType::bf16, DType::f32, false), kGpu);
  const int64_t before = norms();
  gpu.evaluate(true);
  CHECK(norms() == before);
}

TEST_CASE("cuda: batch norms that cuDNN refuses or fails at are the own kernels'") {
  const Settings restored(false);
  emulator::set_known_engines(emulator::Known::nothing);
  CHECK(forward_norms({4100, 64}, DType::bf16) == 0);
  const int64_t asked = emulator::dnn_log().heuristics;
  CHECK(forward_norms({4100, 64}, DType::bf16) == 0);
  CHECK(emulator::dnn_log().heuristics == asked);
  emulator::set_known_engines(emulator::Known::all);
  forget_plans();
  emulator::refuse_running(true);
  CHECK(forward_norms({4100, 64}, DType::bf16) == 0);
  // A plan that failed is not tried again.
  emulator::refuse_running(false);
  CHECK(forward_norms({4100, 64}, DType::bf16) == 0);
}

TEST_CASE("cuda: batch norms are timed against the own kernels, and the choice is kept") {
  const Settings restored(false);
  const auto folder =
      std::filesystem::temp_directory_path() / ("cairn_norms_" + std::to_string(getpid()));
  setenv("XDG_CACHE_HOME", folder.c_str(), 1);
  cuda::settings().benchmark = true;
  // Once before the recording, ten times in it, and the call: running statistics move once.
  CHECK(forward_norms({2100, 16}, DType::bf16) == 1 + 10 + 1);
  CHECK(forward_norms({2100, 16}, DType::bf16) == 1);
  CHECK(forward_norms({2048, 16}, DType::bf16) == 0);  // one launch: nothing can be faster
  const BatchNorm cpu({2100, 16}, DType::bf16, DType::f32, true), gpu(cpu, kGpu);
  cpu.forward(true);
  gpu.forward(true);
  for (const auto& [to, from] :
       {std::pair{gpu.y, cpu.y}, std::pair{gpu.mean, cpu.mean}, std::pair{gpu.rstd, cpu.rstd}})
    raw::copy_(to, from);
  const int64_t before = norms();
  check_gradients(gpu, cpu, true, true, true);
  CHECK(norms() - before == 1 + 10 + 1);

  // The plan's four rounds, then the own kernel's.
  emulator::set_elapsed({2, 2, 2, 2, 1, 1, 1, 1});
  CHECK(forward_norms({2200, 16}, DType::bf16) == 1 + 10);
  CHECK(forward_norms({2200, 16}, DType::bf16) == 0);
  forget_plans();
  const int64_t asked = emulator::dnn_log().heuristics;
  CHECK(forward_norms({2200, 16}, DType::bf16) == 0);
  CHECK(forward_norms({2100, 16}, DType::bf16) == 1);
  CHECK(emulator::dnn_log().heuristics == asked);
  setenv("XDG_CACHE_HOME", "/dev/null", 1);
  std::filesystem::remove_all(folder);
}

TEST_CASE("cuda: a captured batch norm by cuDNN equals the eager one, and is not timed") {
  const Settings restored(false);
  cuda::settings().benchmark = true;
  const BatchNorm cpu({4100, 64}, DType::bf16, DType::f32, true), gpu(cpu, kGpu), eager(cpu, kGpu);
  const int64_t waits = cuda::waits(), before = norms();
  Capture capture(kGpu);
  gpu.forward(true);
  CapturedGraph graph = capture.finish();
  CHECK(norms() == before + 1);
  CHECK(cuda::waits() == waits);
  graph.launch();
  graph.launch();
  cuda::settings().benchmark = false;
  eager.forward(true);
  eager.forward(true);
  CHECK(same_bits(gpu.y, eager.y));
  CHECK(same_bits(gpu.mean, eager.mean));
  CHECK(same_bits(gpu.running_mean, eager.running_mean));
  CHECK(same_bits(gpu.running_var, eager.running_var));
  // What only timing could tell is left to the own kernel.
  cuda::settings().benchmark = true;
  const BatchNorm small(BatchNorm({2100, 16}, DType::bf16, DType::f32, true), kGpu);
  Capture second(kGpu);
  small.forward(true);
  const CapturedGraph unused = second.finish();
  CHECK(norms() == before + 3);
}

TEST_CASE("cuda: the op table's batch norms by cuDNN") {
  const Settings restored(true);
  for (const check_table::Entry& entry : check_table::entries()) {
    if (!entry.op.starts_with("batch_norm")) continue;
    for (DType dtype : entry.dtypes) {
      const int64_t before = norms();
      const check_table::Verdict verdict = check_table::run(entry, dtype, kGpu);
      for (const std::string& failure : verdict.failures) FAIL_CHECK(failure);
      CHECK((norms() > before) == (dtype != DType::f64));
    }
  }
  CHECK(emulator::guard_violations() == 0);
}

TEST_CASE("cuda: ResNet18 with batch norms by cuDNN gives PyTorch's training pass") {
  const Settings restored(true);
  cuda::settings().conv_allow_tf32 = false;
  const int64_t before = norms();
  parity::check_training_pass(DType::f32, kGpu);
  // All 20 forwards, and the backwards behind a residual (8) or without relu (3).
  CHECK(norms() - before >= 31);
  cuda::settings().conv_allow_tf32 = true;
}

TEST_CASE("cuda: the installed cuDNN has engines for our batch norms on an H100") {
  kernels::cuda::DnnApi api{};
  std::string why;
  if (!kernels::cuda::load_dnn(&api, &why)) {
    WARN("not tried against cuDNN: " << why);
    return;
  }
  // Its engines for norms are compiled when they are needed, and are there only where a driver is;
  // the toolkit's stand-in for one is enough to ask which they would be.
  if (dlopen("libcuda.so.1", RTLD_NOW) == nullptr &&
      dlopen(CAIRN_CUDA_STUBS "/libcuda.so", RTLD_NOW) == nullptr) {
    WARN("not tried against cuDNN: there is neither a driver nor the toolkit's stub");
    return;
  }
  const std::optional<kernels::cuda::Descriptor> device = test::h100(api);
  if (!device) {
    WARN("not tried against cuDNN: version " << api.version() << " writes devices another way");
    return;
  }
  int taken = 0;
  for (DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (bool backward : {false, true})
      for (bool relu : {false, true})
        for (bool residual : {false, true}) {
          INFO(name_of(dtype) << (backward ? " backward" : "") << (relu ? " relu" : "")
                              << (residual ? " residual" : ""));
          const auto engines = [&](std::array<int64_t, 4> sizes) {
            const kernels::cuda::NormProblem problem{.backward = backward,
                                                     .dtype = dtype,
                                                     .sizes = sizes,
                                                     .residual = residual,
                                                     .relu = relu,
                                                     .deterministic = true};
            const kernels::cuda::DnnGraph graph =
                kernels::cuda::norm_graph(api, nullptr, problem, &*device);
            CHECK((relu || !residual) == kernels::cuda::has_norm_graph(problem));
            int64_t allowed = 0;
            for (const kernels::cuda::Descriptor& config : graph.recommended(CUDNN_HEUR_MODE_A))
              allowed += graph.allowed(config);
            return allowed;
          };
          const bool ours = relu || !residual;
          if (!ours && backward) continue;  // the graph would be the one without residual
          CHECK((engines({128, 64, 28, 28}) > 0) == ours);
          CHECK((engines({100352, 64, 1, 1}) > 0) == ours);
          CHECK(engines({128, 66, 28, 28}) == 0);
          taken += ours;
        }
  CHECK(taken == 18);
}
