// Speed of the CPU product and convolution kernels on ResNet18's layers, beside the multiply-add
// peak of the same run. Invariant: FLOPs count valid taps only; kernels and peak are both the best
// of interleaved repeats. With one thread the clock is that thread's CPU time, so that other
// processes do not count.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

#include "cairn/kernels/cpu/conv_compute.h"
#include "cairn/kernels/cpu/conv_plan.h"
#include "cairn/kernels/cpu/gemm.h"
#include "cairn/tensor/parallel.h"

namespace {

using cairn::kernels::cpu::ConvGeometry;
namespace cpu = cairn::kernels::cpu;

double now() {
  timespec t{};
  clock_gettime(cairn::num_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

struct Buffer {
  explicit Buffer(int64_t count) : data(static_cast<size_t>(count)) {
    for (size_t i = 0; i < data.size(); ++i)
      data[i] = static_cast<float>(i * 2654435761u % 1000) * 1e-3f - 0.5f;
  }
  std::vector<float> data;
  float* get() { return data.data(); }
};

// GFLOP/s of all threads on a product that lies in the first-level cache: the practical peak.
double measure_peak() {
  static Buffer a(64 * 64), b(64 * 64);
  const auto& kernels = cpu::tile_kernels<float>();
  const int v = kernels.vectors;
  const double flops = 2.0 * cpu::kMaxTileRows * v * kernels.lanes * 64 * 4000;
  const int threads = cairn::num_threads();
  const double start = now();
  cairn::parallel_for(0, threads, 1, [&](int64_t lo, int64_t hi) {
    for (int64_t i = lo; i < hi; ++i) {
      alignas(64) float c[cpu::kMaxTileRows * 64];
      const cpu::GemmTerm<float> term{a.get(), b.get(), 64};
      cpu::GemmTile<float> tile{};
      tile.terms = &term;
      tile.n_terms = 1;
      tile.a_rs = 64;
      tile.a_ks = 1;
      tile.ldb = v * kernels.lanes;
      tile.c = c;
      tile.ldc = 64;
      for (int rep = 0; rep < 4000; ++rep) kernels.full[0][cpu::kMaxTileRows - 1][v - 1](tile);
    }
  });
  return flops * threads / (now() - start) * 1e-9;
}

struct Layer {
  const char* name;
  int times;
  ConvGeometry g;
};

std::vector<Layer> resnet18(int64_t n, int64_t size, int64_t channels) {
  std::vector<Layer> layers;
  const auto conv = [&](const char* name, int times, int64_t hw, int64_t ci, int64_t co, int64_t k,
                        int64_t stride) {
    const int64_t pad = k / 2, out = (hw + 2 * pad - k) / stride + 1;
    layers.push_back(
        {name, times, {n, hw, hw, ci, out, out, co, k, k, stride, stride, pad, pad, 1, 1, 1}});
    return out;
  };
  int64_t hw = conv("conv1", 1, size, channels, 64, 7, 2);
  hw = (hw + 1) / 2;  // max pool
  conv("layer1", 4, hw, 64, 64, 3, 1);
  int64_t in = 64;
  static const char* names[3][3] = {{"layer2.0.conv1", "layer2 s1", "layer2.0.down"},
                                    {"layer3.0.conv1", "layer3 s1", "layer3.0.down"},
                                    {"layer4.0.conv1", "layer4 s1", "layer4.0.down"}};
  for (const auto& name : names) {
    const int64_t out = conv(name[0], 1, hw, in, 2 * in, 3, 2);
    conv(name[1], 3, out, 2 * in, 2 * in, 3, 1);
    conv(name[2], 1, hw, in, 2 * in, 1, 2);
    hw = out;
    in *= 2;
  }
  return layers;
}

double valid_flops(const ConvGeometry& g) {
  double y = 0, x = 0;
  for (int64_t t = 0; t < g.kh; ++t)
    y += static_cast<double>(std::max<int64_t>(0, valid_outputs(axis_y(g), t).count()));
  for (int64_t t = 0; t < g.kw; ++t)
    x += static_cast<double>(std::max<int64_t>(0, valid_outputs(axis_x(g), t).count()));
  return 2.0 * y * x * static_cast<double>(g.n * g.ci * g.co);
}

template <class F>
double best_seconds(int repeats, F&& f) {
  f();
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const double start = now();
    f();
    best = std::min(best, now() - start);
  }
  return best;
}

void bench_convs(int64_t n, int64_t size, int64_t channels, int repeats) {
  std::printf("\nResNet18 convolutions, %ldx%ld, batch %ld, f32, %d threads\n", long(size),
              long(size), long(n), cairn::num_threads());
  std::printf("%-15s %2s %8s | %8s %6s | %8s %6s | %8s %6s | peak\n", "layer", "x", "GFLOP",
              "fwd ms", "%peak", "dgrad ms", "%peak", "wgrad ms", "%peak");
  double total_flops = 0, total_ms[3] = {}, ideal_ms = 0;
  for (const Layer& l : resnet18(n, size, channels)) {
    const ConvGeometry& g = l.g;
    Buffer x(g.n * g.h * g.w * g.ci), y(g.n * g.oh * g.ow * g.co), w(g.kh * g.kw * g.ci * g.co);
    Buffer dx(g.n * g.h * g.w * g.ci), dw(g.kh * g.kw * g.ci * g.co);
    const double flops = valid_flops(g);
    double seconds[3];
    std::vector<double> peaks{measure_peak()};
    seconds[0] = best_seconds(
        repeats, [&] { cpu::conv2d_fwd<float>(g, y.get(), x.get(), w.get(), nullptr); });
    peaks.push_back(measure_peak());
    seconds[1] = best_seconds(
        repeats, [&] { cpu::conv2d_bwd_data<float>(g, dx.get(), false, y.get(), w.get()); });
    peaks.push_back(measure_peak());
    seconds[2] = best_seconds(
        repeats, [&] { cpu::conv2d_bwd_weight<float>(g, dw.get(), false, x.get(), y.get()); });
    peaks.push_back(measure_peak());
    const double peak = *std::max_element(peaks.begin(), peaks.end());
    const int directions = std::strcmp(l.name, "conv1") == 0 ? 2 : 3;
    std::printf("%-15s %2d %8.3f", l.name, l.times, flops * 1e-9);
    for (int d = 0; d < 3; ++d) {
      std::printf(" | %8.3f %6.1f", seconds[d] * 1e3, 100 * flops / seconds[d] / peak * 1e-9);
      if (directions == 2 && d == 1) continue;  // the images need no gradient
      total_ms[d] += l.times * seconds[d] * 1e3;
      total_flops += l.times * flops;
      ideal_ms += l.times * flops / peak * 1e-6;
    }
    std::printf(" | %.0f\n", peak);
  }
  const double ms = total_ms[0] + total_ms[1] + total_ms[2];
  std::printf(
      "all layers: %.2f GFLOP in %.1f ms (fwd %.1f, dgrad %.1f, wgrad %.1f): %.0f GFLOP/s, %.1f%% "
      "of peak\n",
      total_flops * 1e-9, ms, total_ms[0], total_ms[1], total_ms[2], total_flops / ms * 1e-6,
      100 * ideal_ms / ms);
}

void bench_gemm() {
  struct Shape {
    int64_t m, n, k;
  };
  std::printf(
      "\nmatrix products, f32, %d threads: GFLOP/s (and %% of peak) for A*B, A^T*B, A*B^T\n",
      cairn::num_threads());
  for (const Shape s : {Shape{128, 64, 64},
                        {128, 128, 576},
                        {128, 256, 1152},
                        {128, 512, 512},
                        {128, 10, 512},
                        {512, 512, 512},
                        {1024, 1024, 1024},
                        {2048, 2048, 2048}}) {
    Buffer a(s.m * s.k), b(s.k * s.n), c(s.m * s.n);
    const double flops = 2.0 * static_cast<double>(s.m * s.n) * static_cast<double>(s.k);
    const int repeats = std::clamp(static_cast<int>(2e10 / flops), 5, 200);
    const double peak = std::max(measure_peak(), measure_peak());
    std::printf("%5ld x %5ld x %5ld", long(s.m), long(s.n), long(s.k));
    for (int form = 0; form < 3; ++form) {
      const double seconds = best_seconds(repeats, [&] {
        cpu::gemm<float>(s.m, s.n, s.k, a.get(), form == 1 ? 1 : s.k, form == 1 ? s.m : 1, b.get(),
                         form == 2 ? 1 : s.n, form == 2 ? s.k : 1, c.get(), s.n, false);
      });
      std::printf("  %6.1f (%3.0f)", flops / seconds * 1e-9, 100 * flops / seconds / peak * 1e-9);
    }
    std::printf("  peak %.0f\n", std::max(peak, measure_peak()));
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "all";
  const int repeats = argc > 3 ? std::atoi(argv[3]) : 0;
  if (argc > 2) cairn::set_num_threads(std::atoi(argv[2]));
  if (what != "all" && what != "gemm" && what != "28" && what != "224") {
    std::fprintf(stderr, "usage: %s [all|gemm|28|224] [threads] [repeats]\n", argv[0]);
    return 2;
  }
  if (what == "all" || what == "gemm") bench_gemm();
  if (what == "all" || what == "28") bench_convs(128, 28, 1, repeats > 0 ? repeats : 21);
  if (what == "all" || what == "224") bench_convs(16, 224, 3, repeats > 0 ? repeats : 5);
  return 0;
}
