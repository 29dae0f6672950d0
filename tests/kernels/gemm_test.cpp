// Matrix product against a plain double-precision loop: all transpositions, odd sizes, guard bytes,
// every CPU target, and the same bits for 1, 2 and 4 threads.
#include "cairn/kernels/cpu/gemm.h"

#include "tests/catch.h"
#include "tests/kernels/raw_buffers.h"

using raw_test::Guarded;

namespace {

struct Shape {
  int64_t m, n, k;
};

// Layouts of A, B and C: transposed or not, rows apart by `gap` more elements than needed.
struct Layout {
  bool a_transposed, b_transposed;
  int64_t gap;
  int64_t spread;  // elements between neighbours of the inner direction of A
};

// Small products run on one thread whatever the pool holds, so only large ones vary it.
template <class T>
void check_product(const Shape& s, const Layout& l, bool accumulate,
                   const std::vector<int>& thread_counts) {
  const int64_t a_inner = l.a_transposed ? s.m : s.k, a_outer = l.a_transposed ? s.k : s.m;
  const int64_t lda = a_inner * l.spread + l.gap;
  const int64_t b_inner = l.b_transposed ? s.k : s.n, b_outer = l.b_transposed ? s.n : s.k;
  const int64_t ldb = b_inner + l.gap, ldc = s.n + l.gap;
  // The last row ends where its last element does, so that reads past it meet the poison.
  const auto extent = [](int64_t outer, int64_t ld, int64_t used) {
    return outer == 0 || used == 0 ? int64_t{0} : (outer - 1) * ld + used;
  };
  const Guarded<T> a(extent(a_outer, lda, (a_inner - 1) * l.spread + 1), 5);
  const Guarded<T> b(extent(b_outer, ldb, b_inner), 6);
  const int64_t a_rs = l.a_transposed ? l.spread : lda, a_ks = l.a_transposed ? lda : l.spread;
  const int64_t b_rs = l.b_transposed ? 1 : ldb, b_cs = l.b_transposed ? ldb : 1;
  const Guarded<T> c0(extent(s.m, ldc, s.n), 7);

  std::vector<double> want(static_cast<size_t>(c0.count()));
  for (int64_t i = 0; i < c0.count(); ++i) want[static_cast<size_t>(i)] = c0[i];
  for (int64_t i = 0; i < s.m; ++i)
    for (int64_t j = 0; j < s.n; ++j) {
      double sum = accumulate ? static_cast<double>(c0[i * ldc + j]) : 0.0;
      for (int64_t k = 0; k < s.k; ++k)
        sum += static_cast<double>(a[i * a_rs + k * a_ks]) *
               static_cast<double>(b[k * b_rs + j * b_cs]);
      want[static_cast<size_t>(i * ldc + j)] = sum;
    }

  INFO("m " << s.m << " n " << s.n << " k " << s.k << " at " << l.a_transposed << " bt "
            << l.b_transposed << " gap " << l.gap << " spread " << l.spread << " accumulate "
            << accumulate << " bytes " << sizeof(T));
  const auto run = [&] {
    Guarded<T> c = c0;
    cairn::kernels::cpu::gemm<T>(s.m, s.n, s.k, a.data(), a_rs, a_ks, b.data(), b_rs, b_cs,
                                 c.data(), ldc, accumulate);
    CHECK(c.guards_intact());
    CHECK(raw_test::worst_error(c.data(), want, static_cast<double>(s.k) + 1) <= 1.0);
    return c;
  };
  raw_test::for_each_target([&](int64_t target) {
    INFO("target " << target);
    run();
  });
  std::vector<Guarded<T>> results;  // of the best target
  for (const int n : thread_counts) {
    INFO("threads " << n);
    raw_test::Threads threads(n);
    results.push_back(run());
    CHECK(results.back().same_bits(results.front()));
  }
  CHECK(a.guards_intact());
  CHECK(b.guards_intact());
}

const Layout kLayouts[] = {{false, false, 0, 1}, {true, false, 0, 1},  {false, true, 0, 1},
                           {true, true, 0, 1},   {false, false, 3, 1}, {true, true, 5, 1},
                           {false, false, 1, 2}, {true, false, 2, 3}};

const Shape kShapes[] = {{1, 1, 1},   {1, 17, 3},   {2, 64, 5},   {7, 33, 9},    {13, 100, 31},
                         {6, 16, 64}, {50, 10, 40}, {97, 3, 129}, {61, 131, 70}, {3, 5, 0},
                         {0, 4, 3},   {4, 0, 3},    {200, 1, 50}, {1, 200, 300}};

}  // namespace

TEST_CASE("kernels: gemm equals a plain loop for every layout", "[kernels][gemm]") {
  for (const Shape& shape : kShapes)
    for (const Layout& layout : kLayouts)
      for (const bool accumulate : {false, true}) {
        check_product<float>(shape, layout, accumulate, {});
        check_product<double>(shape, layout, accumulate, {});
      }
}

TEST_CASE("kernels: gemm copies rows of a transposed left side for many panels",
          "[kernels][gemm]") {
  check_product<float>({110, 700, 300}, kLayouts[1], false, {1, 2, 4});
  check_product<float>({110, 700, 300}, kLayouts[4], true, {1, 2, 4});
}

TEST_CASE("kernels: gemm with several blocks of k and slices of columns", "[kernels][gemm]") {
  for (const Layout& layout : {kLayouts[0], kLayouts[1], kLayouts[2], kLayouts[3], kLayouts[6]}) {
    check_product<float>({130, 150, 1500}, layout, true, {1, 2, 4});
    check_product<double>({70, 201, 900}, layout, false, {1, 2, 4});
  }
}
