// Speed of the CPU product and convolution kernels on ResNet18's layers, beside the multiply-add
// peak of the same minute. Invariant: FLOPs count valid taps only; kernels and peak are both the
// best of interleaved repeats, on the same clock.
#include <algorithm>
#include <cmath>

#include "bench/jobs.h"
#include "cairn/kernels/cpu/conv_compute.h"
#include "cairn/kernels/cpu/conv_plan.h"
#include "cairn/kernels/cpu/gemm.h"
#include "cairn/tensor/error.h"

namespace cairn::bench {
namespace {

namespace cpu = kernels::cpu;
using cpu::ConvGeometry;

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

double best_peak() {
  const std::vector<double> gflops = fma_peak().at("gflops");
  return *std::max_element(gflops.begin(), gflops.end());
}

std::vector<float> numbers(int64_t count) {
  std::vector<float> out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<float>(i * 2654435761u % 1000) * 1e-3f - 0.5f;
  return out;
}

// Adds up what is reported: lines of kernels, and how much of the peak all of them reached.
class Report {
 public:
  struct Kernel {
    const char* name;
    double gflop, seconds;
  };
  // `times`: how often the network runs this line; 0 leaves it out of the sums.
  void add(const std::string& name, int times, const std::vector<Kernel>& kernels, double peak) {
    json cells = json::array();
    for (const Kernel& k : kernels) {
      cells.push_back(
          {{"kernel", k.name}, {"ms", k.seconds * 1e3}, {"fraction", k.gflop / k.seconds / peak}});
      gflop_ += times * k.gflop;
      seconds_ += times * k.seconds;
      ideal_ += times * k.gflop / peak;
    }
    lines_.push_back({{"name", name},
                      {"times", times},
                      {"gflop", kernels.front().gflop},
                      {"kernels", cells},
                      {"peak", peak}});
  }
  json result() const {
    return {{"lines", lines_},
            {"gflop", gflop_},
            {"ms", seconds_ * 1e3},
            {"gflops", gflop_ / seconds_},
            {"fraction", ideal_ / seconds_}};
  }

 private:
  json lines_ = json::array();
  double gflop_ = 0, seconds_ = 0, ideal_ = 0;
};

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

double valid_gflop(const ConvGeometry& g) {
  double y = 0, x = 0;
  for (int64_t t = 0; t < g.kh; ++t)
    y += static_cast<double>(std::max<int64_t>(0, valid_outputs(axis_y(g), t).count()));
  for (int64_t t = 0; t < g.kw; ++t)
    x += static_cast<double>(std::max<int64_t>(0, valid_outputs(axis_x(g), t).count()));
  return 2e-9 * y * x * static_cast<double>(g.n * g.ci * g.co);
}

json convolutions(int64_t n, int64_t size, int64_t channels, int repeats) {
  Report report;
  for (const Layer& l : resnet18(n, size, channels)) {
    const ConvGeometry& g = l.g;
    auto x = numbers(g.n * g.h * g.w * g.ci), y = numbers(g.n * g.oh * g.ow * g.co);
    auto w = numbers(g.kh * g.kw * g.ci * g.co), dx = x, dw = w;
    const double gflop = valid_gflop(g);
    double peak = best_peak();
    std::vector<Report::Kernel> kernels;
    const auto measure = [&](const char* name, auto&& kernel) {
      kernels.push_back({name, gflop, best_seconds(repeats, kernel)});
      peak = std::max(peak, best_peak());
    };
    measure("fwd", [&] { cpu::conv2d_fwd<float>(g, y.data(), x.data(), w.data(), nullptr); });
    if (l.g.ci != channels)  // the images need no gradient
      measure("dgrad",
              [&] { cpu::conv2d_bwd_data<float>(g, dx.data(), false, y.data(), w.data()); });
    measure("wgrad",
            [&] { cpu::conv2d_bwd_weight<float>(g, dw.data(), false, x.data(), y.data()); });
    report.add(l.name, l.times, kernels, peak);
  }
  return report.result();
}

// The convolutions of the 28x28 job, batch 128, as products over valid taps: a pixel's rows are the
// batch (forward and data gradient), or a tap's columns are batch and pixels (weight gradient).
// `times` brings each to the multiply-adds that its layers have. The squares are for reference.
struct Product {
  const char* name;
  int times;
  int64_t m, n, k;
  bool weight_gradient;
};
constexpr Product kProducts[] = {
    {"layer1", 160, 128, 64, 576, false},         {"layer2.0.conv1", 11, 128, 128, 576, false},
    {"layer2 s1", 33, 128, 128, 1152, false},     {"layer2.0.down", 1, 2048, 128, 64, false},
    {"layer3.0.conv1", 3, 128, 256, 1152, false}, {"layer3 s1", 3, 128, 1024, 1024, false},
    {"layer3.0.down", 1, 512, 256, 128, false},   {"layer4.0.conv1", 1, 128, 512, 1024, false},
    {"layer4 s1", 3, 128, 512, 512, false},       {"layer4.0.down", 1, 128, 512, 256, false},
    {"layer1", 36, 64, 64, 5120, true},           {"layer2.0.conv1", 9, 64, 128, 1408, true},
    {"layer2 s1", 27, 128, 128, 1408, true},      {"layer3.0.conv1", 9, 128, 256, 384, true},
    {"layer3 s1", 27, 256, 256, 256, true},       {"layer4.0.conv1", 1, 1024, 512, 128, true},
    {"layer4 s1", 3, 512, 512, 128, true},        {"square", 0, 512, 512, 512, false},
    {"square", 0, 1024, 1024, 1024, false},       {"square", 0, 2048, 2048, 2048, false},
};

json products(int repeats) {
  Report report;
  for (const Product& p : kProducts) {
    auto a = numbers(p.m * p.k), b = numbers(p.k * p.n), c = numbers(p.m * p.n);
    const double gflop = 2e-9 * static_cast<double>(p.m * p.n) * static_cast<double>(p.k);
    const int count = std::clamp(static_cast<int>(repeats / gflop), repeats / 2 + 1, 10 * repeats);
    double peak = best_peak();
    std::vector<Report::Kernel> kernels;
    const auto measure = [&](const char* name, int64_t a_rs, int64_t a_ks, int64_t b_rs,
                             int64_t b_cs) {
      kernels.push_back({name, gflop, best_seconds(count, [&] {
                           cpu::gemm<float>(p.m, p.n, p.k, a.data(), a_rs, a_ks, b.data(), b_rs,
                                            b_cs, c.data(), p.n, false);
                         })});
      peak = std::max(peak, best_peak());
    };
    if (p.weight_gradient) {
      measure("A^T B", 1, p.m, p.n, 1);
    } else {
      measure("A B", p.k, 1, p.n, 1);
      measure("A B^T", p.k, 1, 1, p.k);
    }
    report.add(cairn::cat(p.name, " ", p.m, "x", p.n, "x", p.k), p.times, kernels, peak);
  }
  return report.result();
}

}  // namespace

json kernels_on_layers(const json& request) {
  const int repeats = request.value("repeats", 21);
  if (request.at("what") == "gemm") return products(repeats);
  return convolutions(request.at("batch"), request.at("size"), request.at("channels"), repeats);
}

}  // namespace cairn::bench
