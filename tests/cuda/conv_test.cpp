// conv2d over the emulated libraries: every way it can take, what chooses it, and what it leaves.
#include "cairn/kernels/conv.h"

#include <cmath>
#include <span>

#include "cairn/kernels/cuda/dnn_conv.h"
#include "cairn/tensor/capture.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/cuda/emulator/emulator_control.h"
#include "tests/cuda/emulator/fake_dnn.h"
#include "tests/cuda/h100.h"
#include "tests/cuda/values.h"

using namespace cairn;
using kernels::ConvParams;
using kernels::Dst;
using test::difference;
using test::random;

namespace {

const Device kGpu(DeviceType::cuda, 0);

// Forgets all plans, so that a change of what the library knows counts.
void forget_plans() { kernels::cuda::set_dnn_api(&emulator::fake_dnn()); }

struct Problem {
  Shape x, w;
  ConvParams p;

  Shape y() const {
    const auto out = [](int64_t in, int64_t k, int64_t stride, int64_t pad, int64_t dil) {
      return (in + 2 * pad - dil * (k - 1) - 1) / stride + 1;
    };
    return {x[0], w[0], out(x[2], w[2], p.stride_h, p.pad_h, p.dil_h),
            out(x[3], w[3], p.stride_w, p.pad_w, p.dil_w)};
  }
};

Tensor weight_like(const Shape& shape, DType dtype, Device device) {
  return empty_strided(shape, kernels::conv_weight_strides(device, shape), {dtype, device});
}

// Results of the three kernels; gradients are added to ones where `add`.
struct Results {
  Tensor y, dx, dw, db;
};
Results results(const Problem& c, DType dtype, Device device, bool add) {
  const auto image = [&](const Shape& shape, uint64_t seed) {
    // Rounded to bf16, which every dtype here holds exactly.
    const Tensor t = empty_channels_last(shape, {dtype, device});
    raw::copy_(t, raw::to(raw::to(random(shape, seed), DType::bf16), dtype));
    return t;
  };
  const Tensor x = image(c.x, 1), dy = image(c.y(), 2);
  const Tensor w = weight_like(c.w, dtype, device);
  raw::copy_(w, raw::to(raw::to(random(c.w, 3), DType::bf16), dtype));
  const Tensor bias = raw::to(raw::to(random({c.w[0]}, 4), DType::bf16), dtype, device);
  Results r{empty_channels_last(c.y(), {dtype, device}), empty_channels_last(c.x, {dtype, device}),
            weight_like(c.w, dtype, device), empty({c.w[0]}, {dtype, device})};
  for (const Tensor& t : {r.dx, r.dw, r.db})
    if (add) raw::fill_(t, 1);
  kernels::conv2d_fwd(device, r.y, x, w, bias, c.p);
  kernels::conv2d_bwd_data(device, Dst{r.dx, add}, dy, w, c.p);
  kernels::conv2d_bwd_weight(device, Dst{r.dw, add}, Dst{r.db, add}, x, dy, c.p);
  return r;
}

void compare(const Problem& c, DType dtype, bool add, double allowed) {
  const Results there = results(c, dtype, kGpu, add), here = results(c, DType::f64, kCPU, add);
  CHECK(difference(there.y, here.y) < allowed);
  CHECK(difference(there.dx, here.dx) < allowed);
  CHECK(difference(there.dw, here.dw) < allowed);
  CHECK(difference(there.db, here.db) < allowed);
}

const Problem kPlain{{2, 5, 6, 7}, {4, 5, 3, 3}, {.pad_h = 1, .pad_w = 1}};
const Problem kStrided{
    {2, 4, 7, 6}, {6, 4, 3, 2}, {.stride_h = 2, .stride_w = 3, .pad_h = 1, .pad_w = 2, .dil_w = 2}};
const Problem kGrouped{{2, 6, 5, 5}, {4, 3, 3, 3}, {.pad_h = 1, .groups = 2}};
const Problem kDepthwise{{2, 6, 5, 6}, {12, 1, 3, 3}, {.stride_w = 2, .pad_h = 1, .groups = 6}};
const Problem kPointwise{{3, 6, 4, 5}, {7, 6, 1, 1}, {}};
const Problem kLastMap{{5, 8, 1, 1}, {6, 8, 3, 3}, {.pad_h = 1, .pad_w = 1}};
const Problem kLastStep{
    {5, 8, 2, 2}, {6, 8, 3, 3}, {.stride_h = 2, .stride_w = 2, .pad_h = 1, .pad_w = 1}};
const Problem kWholeMap{{5, 8, 3, 4}, {6, 8, 3, 4}, {}};
const Problem kOnlyPadding{
    {2, 3, 1, 1}, {4, 3, 1, 1}, {.stride_h = 3, .stride_w = 3, .pad_h = 1, .pad_w = 1}};

class Settings {
 public:
  ~Settings() {
    cuda::settings().conv_allow_tf32 = true;
    cuda::settings().deterministic = false;
    cuda::settings().benchmark = false;
    emulator::refuse_adding(false);
    emulator::refuse_running_engine(-1);
    emulator::set_known_engines(emulator::Known::all);
    forget_plans();
  }
};

}  // namespace

TEST_CASE("cuda: convolutions take their way and agree with the CPU") {
  const Settings restored;
  struct Way {
    const char* name;
    Problem problem;
    int64_t dnn, products;  // calls for forward and both gradients
  };
  const Way ways[] = {{"plain", kPlain, 3, 0},         {"strided, dilated", kStrided, 3, 0},
                      {"grouped", kGrouped, 3, 0},     {"depthwise", kDepthwise, 0, 0},
                      {"pointwise", kPointwise, 0, 3}, {"1x1 map", kLastMap, 0, 3},
                      {"2x2 to 1x1", kLastStep, 0, 6}, {"a whole map", kWholeMap, 0, 3}};
  cuda::settings().conv_allow_tf32 = false;
  for (const Way& way : ways)
    for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16})
      for (bool add : {false, true}) {
        INFO(way.name << " " << name_of(dtype) << (add ? " add" : ""));
        const emulator::DnnLog before = emulator::dnn_log();
        const emulator::BlasLog blas = emulator::blas_log();
        const double allowed = dtype == DType::f64    ? 1e-12
                               : dtype == DType::f32  ? 1e-4
                               : dtype == DType::bf16 ? 0.15
                                                      : 0.03;
        compare(way.problem, dtype, add, allowed);
        const int64_t dnn = dtype == DType::f64 ? 0 : way.dnn;
        CHECK(emulator::dnn_log().executions - before.executions == dnn);
        CHECK(emulator::blas_log().products - blas.products == way.products);
      }
  CHECK(emulator::guard_violations() == 0);
}

TEST_CASE("cuda: convolutions of nothing, and of padding alone") {
  for (DType dtype : {DType::f64, DType::f32}) {
    compare({{0, 3, 4, 4}, {2, 3, 3, 3}, {}}, dtype, false, 1e-5);
    compare({{2, 0, 4, 4}, {2, 0, 3, 3}, {}}, dtype, true, 1e-5);
    compare(kOnlyPadding, dtype, false, 1e-2);
    compare(kOnlyPadding, dtype, true, 1e-2);
  }
}

TEST_CASE("cuda: engines are chosen by the settings") {
  const Settings restored;
  emulator::DnnLog& log = emulator::dnn_log();
  forget_plans();
  compare(kPlain, DType::f32, false, 0.05);
  CHECK(log.last_engine == emulator::kChanceEngine);
  cuda::settings().deterministic = true;
  compare(kPlain, DType::f32, false, 0.05);
  CHECK(log.last_engine == emulator::kTensorEngine);
  cuda::settings().conv_allow_tf32 = false;
  compare(kPlain, DType::f32, false, 1e-5);
  CHECK(log.last_engine == emulator::kExactEngine);
  // bf16 is what it is: the settings of f32 do not matter to it.
  compare(kPlain, DType::bf16, false, 0.15);
  CHECK(log.last_engine == emulator::kTensorEngine);
  emulator::set_known_engines(emulator::Known::fallback);
  forget_plans();
  compare(kPlain, DType::f32, false, 1e-5);
  CHECK(log.last_engine == emulator::kFallbackEngine);
}

TEST_CASE("cuda: without an engine, or one that adds, own kernels take over") {
  const Settings restored;
  cuda::settings().conv_allow_tf32 = false;
  emulator::DnnLog& log = emulator::dnn_log();
  emulator::refuse_adding(true);
  forget_plans();
  emulator::DnnLog before = log;
  compare(kPlain, DType::f32, true, 1e-5);
  CHECK(log.executions == before.executions + 3);
  emulator::set_known_engines(emulator::Known::nothing);
  forget_plans();
  before = log;
  for (bool add : {false, true}) {
    compare(kPlain, DType::f32, add, 1e-5);
    compare(kStrided, DType::f16, add, 0.03);
    compare(kGrouped, DType::bf16, add, 0.15);
  }
  CHECK(log.executions == before.executions);
  // That there is none is remembered.
  const int64_t asked = log.heuristics;
  compare(kPlain, DType::f32, false, 1e-5);
  CHECK(log.heuristics == asked);
}

TEST_CASE("cuda: a plan that fails gives way to the next one") {
  const Settings restored;
  emulator::DnnLog& log = emulator::dnn_log();
  emulator::refuse_running_engine(emulator::kChanceEngine);
  forget_plans();
  compare(kPlain, DType::f32, false, 0.05);
  CHECK(log.last_engine == emulator::kTensorEngine);
  // It is not tried again, and neither is the search.
  emulator::refuse_running_engine(-1);
  const emulator::DnnLog before = log;
  compare(kPlain, DType::f32, false, 0.05);
  CHECK(log.last_engine == emulator::kTensorEngine);
  CHECK(log.heuristics == before.heuristics);
}

TEST_CASE("cuda: a convolution's plan is made once, timed where that is wanted") {
  const Settings restored;
  emulator::DnnLog& log = emulator::dnn_log();
  forget_plans();
  compare(kPlain, DType::f32, false, 0.05);
  emulator::DnnLog before = log;
  compare(kPlain, DType::f32, false, 0.05);
  CHECK(log.heuristics == before.heuristics);
  CHECK(log.executions == before.executions + 3);
  CHECK(log.live == before.live);

  cuda::settings().benchmark = true;
  before = log;
  // Three engines fit: each runs once and is recorded ten times; then the call. Adding to live data
  // must happen once.
  compare(kPlain, DType::f32, true, 0.05);
  CHECK(log.executions == before.executions + 3 * (3 * (1 + 10) + 1));
  before = log;
  compare(kPlain, DType::f32, true, 0.05);
  CHECK(log.executions == before.executions + 3);
}

TEST_CASE("cuda: a captured convolution equals the eager one, and is not timed") {
  const Settings restored;
  cuda::settings().benchmark = true;
  forget_plans();
  const Tensor x = empty_channels_last(kPlain.x, {DType::f32, kGpu});
  raw::copy_(x, raw::to(random(kPlain.x, 1), DType::f32));
  const Tensor w = weight_like(kPlain.w, DType::f32, kGpu);
  raw::copy_(w, raw::to(random(kPlain.w, 2), DType::f32));
  const Tensor y = empty_channels_last(kPlain.y(), {DType::f32, kGpu});
  const int64_t waits = cuda::waits();
  const emulator::DnnLog before = emulator::dnn_log();
  Capture capture(kGpu);
  kernels::conv2d_fwd(kGpu, y, x, w, Tensor(), kPlain.p);
  CapturedGraph graph = capture.finish();
  CHECK(emulator::dnn_log().executions == before.executions + 1);
  CHECK(cuda::waits() == waits);
  graph.launch();
  graph.launch();
  const Tensor eager = empty_channels_last(kPlain.y(), {DType::f32, kGpu});
  kernels::conv2d_fwd(kGpu, eager, x, w, Tensor(), kPlain.p);
  CHECK(difference(y, eager) == 0);
}

TEST_CASE("cuda: taps that only meet padding are left and named") {
  const Tensor x = empty_channels_last(kLastStep.x, {DType::f32, kGpu});
  raw::copy_(x, raw::to(random(kLastStep.x, 1), DType::f32));
  const Tensor dy = empty_channels_last(kLastStep.y(), {DType::f32, kGpu});
  raw::copy_(dy, raw::to(random(kLastStep.y(), 2), DType::f32));
  const Tensor dw = weight_like(kLastStep.w, DType::f32, kGpu);  // NaNs
  kernels::ZeroPattern zeros;
  kernels::conv2d_bwd_weight(kGpu, Dst{dw, false, &zeros}, Dst{}, x, dy, kLastStep.p);
  // Of each filter [3, 3, 8]: the first row, and the first tap of the others.
  const kernels::ZeroPattern dead{{{0, 32}, {48, 56}}, 72};
  CHECK(zeros == dead);
  const Tensor taps = raw::to(dw, DType::f32, kCPU);
  CHECK(raw::select(raw::select(raw::select(raw::select(taps, 0, 1), 0, 3), 0, 0), 0, 2).item() ==
        0);
  CHECK(raw::select(raw::select(raw::select(raw::select(taps, 0, 1), 0, 3), 0, 1), 0, 1).item() !=
        0);

  // Known as zeros: left as they are, which shows here because they are none.
  const int64_t products = emulator::blas_log().products;
  raw::fill_(dw, 7);
  kernels::conv2d_bwd_weight(kGpu, Dst{dw, false, &zeros}, Dst{}, x, dy, kLastStep.p);
  CHECK(raw::select(raw::select(raw::select(raw::select(dw, 0, 1), 0, 3), 0, 0), 0, 2).item() == 7);
  CHECK(emulator::blas_log().products == products + 2);
  CHECK(zeros == dead);
  // Adding to something that was not known: nothing is known afterwards.
  zeros.clear();
  kernels::conv2d_bwd_weight(kGpu, Dst{dw, true, &zeros}, Dst{}, x, dy, kLastStep.p);
  CHECK(zeros.empty());
}

TEST_CASE("cuda: own kernels name the taps that only meet padding, cuDNN's do not") {
  // Rows of one pixel: of 3 x 3 taps the first and the last row meet padding.
  const Problem row{{2, 8, 1, 6}, {8, 4, 3, 3}, {.pad_h = 1, .pad_w = 1, .groups = 2}};
  const kernels::ZeroPattern dead{{{0, 12}, {24, 36}}, 36};
  for (DType dtype : {DType::f64, DType::f32}) {
    INFO(name_of(dtype));
    const Tensor x = empty_channels_last(row.x, {dtype, kGpu});
    raw::copy_(x, raw::to(random(row.x, 1), dtype));
    const Tensor dy = empty_channels_last(row.y(), {dtype, kGpu});
    raw::copy_(dy, raw::to(random(row.y(), 2), dtype));
    const Tensor dw = weight_like(row.w, dtype, kGpu);  // NaNs
    kernels::ZeroPattern zeros{{{0, 1}}};
    const auto run = [&](bool add) {
      kernels::conv2d_bwd_weight(kGpu, Dst{dw, add, &zeros}, Dst{}, x, dy, row.p);
    };
    run(false);
    CHECK(zeros == (dtype == DType::f64 ? dead : kernels::ZeroPattern()));
    const Tensor memory =
        raw::to(Tensor(dw.storage(), dtype, {dw.numel()}, {1}, dw.offset()), DType::f64, kCPU);
    for (int64_t i = 0; i < memory.numel(); ++i)
      CHECK((memory.data<double>()[i] == 0) == (i % 36 < 12 || i % 36 >= 24));
    run(true);
    CHECK(zeros == (dtype == DType::f64 ? dead : kernels::ZeroPattern()));
    zeros.clear();
    run(true);
    CHECK(zeros.empty());
  }
}

TEST_CASE("cuda: the installed cuDNN takes our descriptions") {
  kernels::cuda::DnnApi api{};
  std::string why;
  if (!kernels::cuda::load_dnn(&api, &why)) {
    WARN("not tried against cuDNN: " << why);
    return;
  }
  int made = 0;
  for (const Problem& c : {kPlain, kStrided, kGrouped, kDepthwise, kPointwise, kLastStep})
    for (DType dtype : {DType::f32, DType::bf16, DType::f16})
      for (auto kind : {kernels::cuda::ConvKind::fwd, kernels::cuda::ConvKind::bwd_data,
                        kernels::cuda::ConvKind::bwd_weight})
        for (bool add : {false, true}) {
          // Without a device there is no handle, and a graph is as far as descriptions go.
          const kernels::cuda::DnnGraph graph =
              kernels::cuda::conv_graph(api, nullptr,
                                        {.kind = kind,
                                         .shape = kernels::cuda::conv_shape(c.x, c.w, c.y(), c.p),
                                         .dtype = dtype,
                                         .add = add});
          ++made;
        }
  CHECK(made == 108);
}

TEST_CASE("cuda: the installed cuDNN has plans for an H100, also when they come from disk") {
  kernels::cuda::DnnApi api{};
  std::string why;
  if (!kernels::cuda::load_dnn(&api, &why)) {
    WARN("not tried against cuDNN: " << why);
    return;
  }
  const std::optional<kernels::cuda::Descriptor> device = test::h100(api);
  if (!device) {
    WARN("not tried against cuDNN: version " << api.version() << " writes devices another way");
    return;
  }
  for (DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (auto kind : {kernels::cuda::ConvKind::fwd, kernels::cuda::ConvKind::bwd_data,
                      kernels::cuda::ConvKind::bwd_weight})
      for (bool add : {false, true})
        for (bool strict : {false, true}) {
          INFO(name_of(dtype) << " " << static_cast<int>(kind) << add << strict);
          const Problem c{{128, 64, 7, 7}, {64, 64, 3, 3}, {.pad_h = 1, .pad_w = 1}};
          const kernels::cuda::DnnGraph graph =
              kernels::cuda::conv_graph(api, nullptr,
                                        {.kind = kind,
                                         .shape = kernels::cuda::conv_shape(c.x, c.w, c.y(), c.p),
                                         .dtype = dtype,
                                         .add = add,
                                         .tf32 = !strict,
                                         .deterministic = strict},
                                        &*device);
          bool built = false;
          for (kernels::cuda::Descriptor& config : graph.recommended(CUDNN_HEUR_MODE_A)) {
            if (built || !graph.allowed(config)) continue;
            const kernels::cuda::PlanChoice choice = graph.choice_of(config);
            const auto plan = graph.build(std::move(config));
            if (plan == nullptr) continue;
            built = true;
            const auto again = graph.build(choice);
            REQUIRE(again != nullptr);
            CHECK(again->workspace == plan->workspace);
            CHECK(graph.choice_of(again->config) == choice);
          }
          CHECK(built);
        }
}
