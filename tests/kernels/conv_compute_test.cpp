// Convolution kernels against a plain double-precision loop: awkward geometries, guard bytes, every
// CPU target, and the same bits for 1, 2 and 4 threads.
#include "cairn/kernels/cpu/conv_compute.h"

#include <string>

#include "tests/catch.h"
#include "tests/kernels/raw_buffers.h"

using cairn::kernels::cpu::ConvGeometry;
using raw_test::Guarded;

namespace {

int64_t out_size(int64_t in, int64_t k, int64_t stride, int64_t pad, int64_t dil) {
  const int64_t reach = in + 2 * pad - dil * (k - 1) - 1;
  return reach < 0 ? 0 : reach / stride + 1;
}

struct Case {
  int64_t n, h, w, ci, co, kh, kw, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, groups;
};

ConvGeometry geometry(const Case& c) {
  return {c.n,
          c.h,
          c.w,
          c.ci,
          out_size(c.h, c.kh, c.stride_h, c.pad_h, c.dil_h),
          out_size(c.w, c.kw, c.stride_w, c.pad_w, c.dil_w),
          c.co,
          c.kh,
          c.kw,
          c.stride_h,
          c.stride_w,
          c.pad_h,
          c.pad_w,
          c.dil_h,
          c.dil_w,
          c.groups};
}

std::string text(const Case& c) {
  std::string s;
  for (int64_t v : {c.n, c.h, c.w, c.ci, c.co, c.kh, c.kw, c.stride_h, c.stride_w, c.pad_h, c.pad_w,
                    c.dil_h, c.dil_w, c.groups})
    s += std::to_string(v) + " ";
  return s;
}

// Calls f(x index, w index, y index) for every product of the convolution.
template <class F>
void for_each_product(const ConvGeometry& g, F&& f) {
  const int64_t k = g.ci / g.groups, per = g.co / g.groups;
  for (int64_t n = 0; n < g.n; ++n)
    for (int64_t oy = 0; oy < g.oh; ++oy)
      for (int64_t ox = 0; ox < g.ow; ++ox)
        for (int64_t ty = 0; ty < g.kh; ++ty)
          for (int64_t tx = 0; tx < g.kw; ++tx) {
            const int64_t iy = oy * g.stride_h - g.pad_h + ty * g.dil_h;
            const int64_t ix = ox * g.stride_w - g.pad_w + tx * g.dil_w;
            if (iy < 0 || iy >= g.h || ix < 0 || ix >= g.w) continue;
            for (int64_t i = 0; i < k; ++i)
              for (int64_t o = 0; o < g.co; ++o)
                f(((n * g.h + iy) * g.w + ix) * g.ci + o / per * k + i,
                  ((ty * g.kw + tx) * k + i) * g.co + o, ((n * g.oh + oy) * g.ow + ox) * g.co + o);
          }
}

template <class T>
struct Data {
  explicit Data(const ConvGeometry& g)
      : x(g.n * g.h * g.w * g.ci, 11),
        w(g.kh * g.kw * (g.ci / g.groups) * g.co, 12),
        bias(g.co, 13),
        dy(g.n * g.oh * g.ow * g.co, 14) {}
  Guarded<T> x, w, bias, dy;
  bool guards_intact() const {
    return x.guards_intact() && w.guards_intact() && bias.guards_intact() && dy.guards_intact();
  }
};

struct Reference {
  std::vector<double> y, y_bias, dx, dw, db;
};

template <class T>
Reference reference(const ConvGeometry& g, const Data<T>& d) {
  Reference r;
  r.y.assign(static_cast<size_t>(d.dy.count()), 0.0);
  r.dx.assign(static_cast<size_t>(d.x.count()), 0.0);
  r.dw.assign(static_cast<size_t>(d.w.count()), 0.0);
  r.db.assign(static_cast<size_t>(g.co), 0.0);
  for_each_product(g, [&](int64_t x, int64_t w, int64_t y) {
    r.y[static_cast<size_t>(y)] += static_cast<double>(d.x[x]) * static_cast<double>(d.w[w]);
    r.dx[static_cast<size_t>(x)] += static_cast<double>(d.dy[y]) * static_cast<double>(d.w[w]);
    r.dw[static_cast<size_t>(w)] += static_cast<double>(d.dy[y]) * static_cast<double>(d.x[x]);
  });
  r.y_bias = r.y;
  for (int64_t i = 0; i < d.dy.count(); ++i) {
    r.y_bias[static_cast<size_t>(i)] += static_cast<double>(d.bias[i % g.co]);
    r.db[static_cast<size_t>(i % g.co)] += static_cast<double>(d.dy[i]);
  }
  return r;
}

// All results of one configuration, to compare bits between thread counts.
template <class T>
struct Results {
  std::vector<Guarded<T>> parts;
  bool same_bits(const Results& other) const {
    for (size_t i = 0; i < parts.size(); ++i)
      if (!parts[i].same_bits(other.parts[i])) return false;
    return true;
  }
};

// Runs every direction, overwriting poison and adding to known values, and checks it.
template <class T>
Results<T> run_all(const ConvGeometry& g, const Data<T>& d, const Reference& want) {
  using namespace cairn::kernels::cpu;
  const double y_terms = static_cast<double>(g.kh * g.kw * (g.ci / g.groups)) + 1;
  const double dx_terms = static_cast<double>(g.kh * g.kw * (g.co / g.groups)) + 1;
  const double dw_terms = static_cast<double>(g.n * g.oh * g.ow) + 1;
  Results<T> results;
  const auto finish = [&](Guarded<T>&& out, const std::vector<double>& expected, double terms) {
    CHECK(out.guards_intact());
    CHECK(raw_test::worst_error(out.data(), expected, terms) <= 1.0);
    results.parts.push_back(std::move(out));
  };
  const auto plus_old = [](const std::vector<double>& sum, const Guarded<T>& old) {
    std::vector<double> out = sum;
    for (size_t i = 0; i < out.size(); ++i)
      out[i] += static_cast<double>(old[static_cast<int64_t>(i)]);
    return out;
  };
  const auto y_count = d.dy.count(), x_count = d.x.count(), w_count = d.w.count();
  {
    Guarded<T> y(y_count);
    conv2d_fwd<T>(g, y.data(), d.x.data(), d.w.data(), nullptr);
    finish(std::move(y), want.y, y_terms);
    Guarded<T> with_bias(y_count);
    conv2d_fwd<T>(g, with_bias.data(), d.x.data(), d.w.data(), d.bias.data());
    finish(std::move(with_bias), want.y_bias, y_terms);
  }
  for (const bool add : {false, true}) {
    const uint64_t seed = add ? 21 : 0;
    Guarded<T> dx(x_count, seed), dw(w_count, seed), db(g.co, seed);
    const auto want_dx = add ? plus_old(want.dx, dx) : want.dx;
    const auto want_dw = add ? plus_old(want.dw, dw) : want.dw;
    const auto want_db = add ? plus_old(want.db, db) : want.db;
    conv2d_bwd_data<T>(g, dx.data(), add, d.dy.data(), d.w.data());
    conv2d_bwd_weight<T>(g, dw.data(), add, d.x.data(), d.dy.data());
    conv2d_bwd_bias<T>(g, db.data(), add, d.dy.data());
    finish(std::move(dx), want_dx, dx_terms);
    finish(std::move(dw), want_dw, dw_terms);
    finish(std::move(db), want_db, dw_terms);
  }
  CHECK(d.guards_intact());
  return results;
}

template <class T>
void check_case(const Case& c) {
  const ConvGeometry g = geometry(c);
  INFO("n h w ci co kh kw sh sw ph pw dh dw groups: " << text(c)
                                                      << (sizeof(T) == 4 ? "f32" : "f64"));
  const Data<T> data(g);
  const Reference want = reference(g, data);
  raw_test::for_each_target([&](int64_t target) {
    INFO("target " << target);
    run_all(g, data, want);
  });
  std::vector<Results<T>> results;  // of the best target
  for (const int n : {1, 2, 4}) {
    INFO("threads " << n);
    raw_test::Threads threads(n);
    results.push_back(run_all(g, data, want));
    CHECK(results.back().same_bits(results.front()));
  }
}

// n h w ci co kh kw stride pad dil groups, the same in both directions.
Case square(int64_t n, int64_t hw, int64_t ci, int64_t co, int64_t k, int64_t stride, int64_t pad,
            int64_t dil = 1, int64_t groups = 1) {
  return {n, hw, hw, ci, co, k, k, stride, stride, pad, pad, dil, dil, groups};
}

const Case kCases[] = {
    square(5, 7, 16, 16, 3, 1, 1),                // rows over images, whole vectors
    square(13, 4, 8, 24, 3, 1, 1),                // images outnumber columns
    square(2, 20, 5, 7, 3, 1, 1),                 // rows over pixels, masked channels
    square(1, 33, 3, 19, 3, 2, 1),                // stride 2, odd size
    square(9, 8, 6, 10, 3, 2, 1),                 // stride 2, even size, narrow output
    square(7, 2, 20, 33, 3, 1, 1),                // 2x2 maps
    square(8, 1, 17, 40, 3, 1, 1),                // 1x1 maps: one live tap
    square(8, 2, 12, 70, 3, 2, 1),                // 2x2 to 1x1
    square(3, 14, 1, 64, 7, 2, 3),                // stem, one channel
    square(2, 23, 3, 20, 7, 2, 3),                // stem, three channels
    square(11, 9, 2, 5, 5, 1, 2),                 // few channels, images outnumber columns
    square(3, 9, 65, 130, 1, 1, 0),               // 1x1: plain product, several panels
    square(4, 7, 18, 9, 1, 2, 0),                 // 1x1 with stride: pixels that no tap reaches
    square(2, 6, 8, 8, 1, 1, 1),                  // 1x1 with padding
    square(2, 11, 6, 6, 3, 1, 2, 2),              // dilation
    square(2, 12, 4, 6, 3, 2, 3, 2),              // dilation and stride
    square(2, 13, 4, 6, 3, 3, 1, 2),              // stride and dilation without a common factor
    square(2, 5, 4, 4, 3, 1, 6),                  // padding larger than the kernel
    square(3, 4, 3, 3, 2, 5, 0),                  // stride larger than the kernel
    square(2, 3, 4, 5, 5, 1, 1),                  // kernel larger than the input
    square(3, 9, 12, 18, 3, 1, 1, 1, 3),          // groups
    square(17, 4, 8, 4, 3, 2, 1, 1, 4),           // groups, one output channel each
    square(2, 9, 19, 19, 3, 1, 1, 1, 19),         // depthwise
    square(2, 10, 36, 36, 5, 2, 2, 1, 36),        // depthwise, stride
    square(2, 9, 6, 12, 3, 1, 1, 1, 6),           // two outputs for each input channel
    square(1, 1, 1, 1, 1, 1, 0),                  // a single product
    square(0, 8, 4, 4, 3, 1, 1),                  // empty batch
    {2, 9, 5, 7, 11, 3, 2, 2, 1, 0, 1, 1, 2, 1},  // nothing is square
    {3, 1, 17, 4, 6, 1, 5, 1, 2, 0, 2, 1, 1, 1},  // one row
    {3, 17, 1, 4, 6, 5, 1, 2, 1, 2, 0, 1, 1, 1},  // one column
    {20, 3, 8, 5, 9, 3, 3, 1, 1, 1, 1, 1, 1, 1},
};

}  // namespace

TEST_CASE("kernels: conv2d kernels equal a plain loop in every direction", "[kernels][conv]") {
  for (const Case& c : kCases) {
    check_case<float>(c);
    check_case<double>(c);
  }
}

TEST_CASE("kernels: conv2d kernels on shapes that fill several panels and parts",
          "[kernels][conv]") {
  check_case<float>(square(24, 7, 64, 64, 3, 1, 1));  // weight gradient in several parts
  check_case<float>(square(17, 4, 64, 128, 3, 2, 1));
  check_case<float>(square(16, 28, 1, 64, 7, 2, 3));  // merged taps in several parts
  check_case<float>(square(2, 28, 12, 80, 3, 1, 1));
  check_case<float>(square(1, 14, 260, 72, 3, 1, 1));  // tap matrices beyond one cache block
  check_case<double>(square(9, 4, 40, 72, 3, 1, 1));
}

TEST_CASE("kernels: conv2d writes exact zeros for taps that only meet padding", "[kernels][conv]") {
  using namespace cairn::kernels::cpu;
  const ConvGeometry g = geometry(square(6, 1, 16, 32, 3, 1, 1));
  const Data<float> d(g);
  Guarded<float> dw(d.w.count(), 3);
  conv2d_bwd_weight<float>(g, dw.data(), false, d.x.data(), d.dy.data());
  int64_t zeros = 0;
  for (int64_t i = 0; i < dw.count(); ++i)
    if (i / (16 * 32) != 4) zeros += dw[i] == 0.0f;
  CHECK(zeros == 8 * 16 * 32);
}
