// matmul and linear on a GPU: strided tensors become the products that cuBLASLt takes.
// Invariant: an operand is copied only where no row or column of it has adjacent elements (or its
// rows overlap); the copy is scratch of the caching allocator, as a device has none of a thread's.
#include "cairn/kernels/matmul.h"

#include <algorithm>

#include "cairn/kernels/accumulate.h"
#include "cairn/kernels/cuda/blas.h"
#include "cairn/kernels/cuda/rows.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/raw.h"

namespace cairn::kernels::cuda {
namespace {

bool tf32_allowed() { return cairn::cuda::settings().matmul_allow_tf32; }

// How [rows, cols] with these strides lies: rows or columns of adjacent elements that do not
// overlap. False where it does neither.
bool place(int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride, Operand* out) {
  const bool by_rows = (col_stride == 1 || cols == 1) && (row_stride >= cols || rows == 1);
  const bool by_cols = (row_stride == 1 || rows == 1) && (col_stride >= rows || cols == 1);
  if (!by_rows && !by_cols) return false;
  // Where both hold one size is 1: the longer stretch of adjacent elements is the better row.
  out->transposed = !by_rows || (by_cols && rows > cols);
  if (out->transposed)
    out->ld = cols == 1 ? rows : col_stride;
  else
    out->ld = rows == 1 ? cols : row_stride;
  return true;
}

// A tensor [..., rows, cols] that lies so, with the same leading sizes: itself or a copy.
Tensor usable(const Tensor& t) {
  const size_t rows = t.shape().size() - 2, cols = rows + 1;
  Operand ignored;
  if (place(t.shape()[rows], t.shape()[cols], t.strides()[rows], t.strides()[cols], &ignored))
    return t;
  Tensor once = t;  // what a leading dimension repeats is copied once
  for (size_t d = 0; d < rows; ++d)
    if (once.strides()[d] == 0 && once.shape()[d] > 1)
      once = raw::slice(once, static_cast<int64_t>(d), 0, 1);
  const Tensor dense = empty(once.shape(), {t.dtype(), t.device()});
  raw::copy_(dense, once);
  return raw::expand(dense, t.shape());
}

// One leading dimension.
struct Loop {
  int64_t size, a, b, c;  // strides
  bool sums() const { return c == 0; }
};

// The leading dimensions, outermost first: those of size 1 left out, those that lie together in all
// three tensors made one.
int collect_loops(const Tensor& a, const Tensor& b, const Tensor& c, Loop* loops) {
  int count = 0;
  for (size_t d = 0; d + 2 < c.shape().size(); ++d) {
    const Loop loop{c.shape()[d], a.strides()[d], b.strides()[d], c.strides()[d]};
    if (loop.size == 1) continue;
    Loop* const outer = count > 0 ? loops + count - 1 : nullptr;
    if (outer != nullptr && outer->a == loop.a * loop.size && outer->b == loop.b * loop.size &&
        outer->c == loop.c * loop.size)
      *outer = {outer->size * loop.size, loop.a, loop.b, loop.c};
    else
      loops[count++] = loop;
  }
  return count;
}

// c (+)= a b for every combination of the loops, as few calls as they allow.
struct Products {
  Device device;
  const char* op;
  int64_t item, c_item;  // bytes
  Gemm gemm;             // of the first combination
  const std::byte* a;
  const std::byte* b;
  std::byte* c;
  Loop loops[kMaxRank];
  int count = 0;
  bool swapped = false;  // the library's a is b and its b is a

  bool sums() const {
    return std::any_of(loops, loops + count, [](const Loop& loop) { return loop.sums(); });
  }

  void remove(int at) {
    std::copy(loops + at + 1, loops + count, loops + at);
    --count;
  }

  // The longest loop whose results lie apart becomes the library's batch.
  void choose_batch() {
    int best = -1;
    for (int i = 0; i < count; ++i)
      if (!loops[i].sums() && (best < 0 || loops[i].size > loops[best].size)) best = i;
    if (best < 0) return;
    const Loop& loop = loops[best];
    gemm.batch = loop.size;
    gemm.a.batch_stride = swapped ? loop.b : loop.a;
    gemm.b.batch_stride = swapped ? loop.a : loop.b;
    gemm.c_batch_stride = loop.c;
    remove(best);
  }

  void run(int depth = 0, bool first = true) {
    if (depth < count) {
      const Loop loop = loops[depth];
      for (int64_t i = 0; i < loop.size; ++i) {
        run(depth + 1, first && (i == 0 || !loop.sums()));
        a += loop.a * item;
        b += loop.b * item;
        c += loop.c * c_item;
      }
      a -= loop.size * loop.a * item;
      b -= loop.size * loop.b * item;
      c -= loop.size * loop.c * c_item;
      return;
    }
    Gemm one = gemm;
    one.a.data = swapped ? b : a;
    one.b.data = swapped ? a : b;
    one.c = c;
    one.add |= !first;
    cuda::gemm(device, one, op);
  }
};

// A sum over a leading dimension that continues K in both operands is a longer K.
bool lengthen_k(int64_t m, int64_t n, int64_t* k, Products* p, const Tensor& a, const Tensor& b) {
  const int64_t ak = a.stride(-1), bk = b.stride(-2);
  for (int i = 0; i < p->count; ++i) {
    const Loop& loop = p->loops[i];
    Operand ignored;
    if (!loop.sums() || loop.a != *k * ak || loop.b != *k * bk) continue;
    const int64_t longer = *k * loop.size;
    if (!place(m, longer, a.stride(-2), ak, &ignored) ||
        !place(longer, n, bk, b.stride(-1), &ignored))
      continue;
    *k = longer;
    p->remove(i);
    return true;
  }
  return false;
}

// What is repeated in c once.
Tensor without_repeats(const Tensor& c) {
  Tensor once = c;
  for (size_t d = 0; d < c.shape().size(); ++d)
    if (c.strides()[d] == 0 && c.shape()[d] > 1)
      once = raw::slice(once, static_cast<int64_t>(d), 0, 1);
  return once;
}

// Everything but the result's place.
Products plan_products(const Tensor& c, const Tensor& a, const Tensor& b) {
  const int64_t m = c.size(-2), n = c.size(-1);
  int64_t k = a.size(-1);
  Products p;
  p.device = c.device();
  p.op = "matmul";
  p.item = item_size(a.dtype());
  p.a = static_cast<const std::byte*>(a.raw_data());
  p.b = static_cast<const std::byte*>(b.raw_data());
  p.count = collect_loops(a, b, c, p.loops);
  while (lengthen_k(m, n, &k, &p, a, b)) {
  }
  Operand to;
  check(place(m, n, c.stride(-2), c.stride(-1), &to),
        "matmul: result must have rows or columns of adjacent elements, got strides ", c.strides());
  Gemm& g = p.gemm;
  g.dtype = a.dtype();
  g.tf32 = tf32_allowed();
  g.k = k;
  g.ldc = to.ld;
  // The library writes rows; a result in columns is the transposed product.
  p.swapped = to.transposed;
  if (p.swapped) {
    g.m = n;
    g.n = m;
    place(n, k, b.stride(-1), b.stride(-2), &g.a);
    place(k, m, a.stride(-1), a.stride(-2), &g.b);
  } else {
    g.m = m;
    g.n = n;
    place(m, k, a.stride(-2), a.stride(-1), &g.a);
    place(k, n, b.stride(-2), b.stride(-1), &g.b);
  }
  return p;
}

void run_into(const Dst& dst, Products* p) {
  p->c = static_cast<std::byte*>(dst.tensor.raw_data());
  p->c_item = item_size(dst.tensor.dtype());
  p->gemm.c_dtype = dst.tensor.dtype();
  p->gemm.add = dst.add;
  p->choose_batch();
  p->run();
}

void cuda_matmul(const Dst& dst, In given_a, In given_b) {
  const Tensor& c = dst.tensor;
  if (c.numel() == 0) return;
  if (given_a.size(-1) == 0) {
    // Where leading dimensions are summed over, filling once is enough and fills alike.
    if (!dst.add) raw::fill_(without_repeats(c), 0);
    return;
  }
  const Tensor a = usable(given_a), b = usable(given_b);
  Products p = plan_products(c, a, b);
  if (item_size(c.dtype()) > 2 || !p.sums()) return run_into(dst, &p);
  // 16-bit products that are summed one after the other: rounding between them would show.
  const Tensor once = without_repeats(c);
  const Tensor wide = empty(once.shape(), {DType::f32, c.device()});
  Products into_wide = plan_products(raw::expand(wide, c.shape()), a, b);
  run_into(Dst{wide, false}, &into_wide);
  if (dst.add)
    accumulate_to(c.device(), Dst{once, true}, wide);
  else
    raw::copy_(once, wide);
}

Epilogue epilogue_of(bool bias, bool pre, Activation activation) {
  if (activation == Activation::relu) return bias ? Epilogue::relu_bias : Epilogue::relu;
  if (activation == Activation::none) return bias ? Epilogue::bias : Epilogue::none;
  if (pre) return bias ? Epilogue::gelu_aux_bias : Epilogue::gelu_aux;
  return bias ? Epilogue::gelu_bias : Epilogue::gelu;
}

void cuda_linear_fwd(Out y, Out pre, In given_x, In given_w, In bias, Activation activation) {
  if (y.numel() == 0) return;
  const int64_t m = y.size(0), n = y.size(1), k = given_x.size(1);
  if (k == 0) {
    raw::fill_(y, 0);
    return finish_rows(y, pre, bias, activation);
  }
  const Tensor x = usable(given_x), w = usable(given_w);
  Gemm g;
  g.dtype = g.c_dtype = y.dtype();
  g.tf32 = tf32_allowed();
  g.m = m;
  g.n = n;
  g.k = k;
  place(m, k, x.stride(0), x.stride(1), &g.a);
  place(k, n, w.stride(1), w.stride(0), &g.b);
  g.a.data = x.raw_data();
  g.b.data = w.raw_data();
  g.c = y.raw_data();
  g.ldc = n;
  const Gemm plain = g;
  g.epilogue = epilogue_of(bias.defined(), pre.defined(), activation);
  if (bias.defined()) g.bias = bias.raw_data();
  if (pre.defined()) g.aux = pre.raw_data();
  // The library has no epilogues in f64, and writes only gelu's input, in rows of whole eights.
  // What it computes must not depend on whether somebody wants that input.
  const bool gelu = activation == Activation::gelu;
  const bool fuses = y.dtype() != DType::f64 && (gelu ? n % 8 == 0 : !pre.defined());
  if (fuses && gemm(y.device(), g, "linear")) return;
  gemm(y.device(), plain, "linear");
  if (g.epilogue != Epilogue::none) finish_rows(y, pre, bias, activation);
}

void cuda_linear_bwd_activation(const Dst& dpre, const Dst& db, In dy, In saved,
                                Activation activation) {
  undo_activation(dpre.tensor, db, dy, saved, activation);
}

void cuda_sum_rows(const Dst& db, In dy) { column_sums(db, dy); }

}  // namespace

void fill_matmul() {
  matmul.fill(DeviceType::cuda, cuda_matmul);
  linear_fwd.fill(DeviceType::cuda, cuda_linear_fwd);
  linear_bwd_activation.fill(DeviceType::cuda, cuda_linear_bwd_activation);
  sum_rows.fill(DeviceType::cuda, cuda_sum_rows);
}

}  // namespace cairn::kernels::cuda
