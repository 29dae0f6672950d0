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
    Gemm one = here();
    one.add |= !first;
    cuda::gemm(device, one, op);
  }

  // Of the present combination.
  Gemm here() const {
    Gemm one = gemm;
    one.a.data = swapped ? b : a;
    one.b.data = swapped ? a : b;
    one.c = c;
    return one;
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

void aim(const Dst& dst, Products* p) {
  p->c = static_cast<std::byte*>(dst.tensor.raw_data());
  p->c_item = item_size(dst.tensor.dtype());
  p->gemm.c_dtype = dst.tensor.dtype();
  p->gemm.add = dst.add;
}

void run_into(const Dst& dst, Products* p) {
  aim(dst, p);
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

// c = a b of matrices, c in rows.
Gemm matrix_product(Out c, In a, In b) {
  Gemm g;
  g.dtype = g.c_dtype = c.dtype();
  g.tf32 = tf32_allowed();
  g.m = c.size(0);
  g.n = g.ldc = c.size(1);
  g.k = a.size(1);
  place(g.m, g.k, a.stride(0), a.stride(1), &g.a);
  place(g.k, g.n, b.stride(0), b.stride(1), &g.b);
  g.a.data = a.raw_data();
  g.b.data = b.raw_data();
  g.c = c.raw_data();
  return g;
}

Epilogue epilogue_of(bool bias, bool aux, Activation activation) {
  if (activation == Activation::none) return bias ? Epilogue::bias : Epilogue::none;
  const bool relu = activation == Activation::relu;
  if (aux && bias) return relu ? Epilogue::relu_aux_bias : Epilogue::gelu_aux_bias;
  if (aux) return relu ? Epilogue::relu_aux : Epilogue::gelu_aux;
  if (bias) return relu ? Epilogue::relu_bias : Epilogue::gelu_bias;
  return relu ? Epilogue::relu : Epilogue::gelu;
}

// Whether the library may do a layer's activation with the product. It has no epilogues in f64, and
// keeps and reads gelu's input in rows of whole eights. What it computes must not depend on whether
// somebody wants that input.
bool fuses(In y, Activation activation) {
  return y.dtype() != DType::f64 && (activation != Activation::gelu || y.size(1) % 8 == 0);
}

// y and what is kept beside it in one product; false, and nothing done, where the library cannot.
bool fused_linear(Out y, Out pre, Out mask, const Gemm& plain, In bias, Activation activation) {
  Gemm g = plain;
  g.epilogue = epilogue_of(bias.defined(), pre.defined() || mask.defined(), activation);
  if (bias.defined()) g.bias = bias.raw_data();
  if (pre.defined()) {
    g.aux = pre.raw_data();
    g.aux_ld = pre.size(1);
  } else if (mask.defined()) {
    g.aux = mask.raw_data();
    g.aux_ld = 8 * mask.size(1);
  }
  return gemm(y.device(), g, "linear");
}

void cuda_linear_fwd(Out y, Out pre, Tensor* mask, In given_x, In given_w, In bias,
                     Activation activation) {
  const bool product = y.numel() > 0 && given_x.size(1) > 0;
  Tensor x, w;
  Gemm plain;
  if (product) {
    x = usable(given_x);
    w = usable(given_w);
    plain = matrix_product(y, x, raw::transpose(w, 0, 1));
  }
  const bool may_fuse = product && fuses(y, activation);
  if (mask != nullptr) {
    if (may_fuse && fused_linear(y, pre, *mask, plain, bias, activation)) return;
    *mask = Tensor();
  }
  if (may_fuse && fused_linear(y, pre, {}, plain, bias, activation)) return;
  if (y.numel() == 0) return;
  if (product)
    gemm(y.device(), plain, "linear");
  else
    raw::fill_(y, 0);
  if (bias.defined() || pre.defined() || activation != Activation::none)
    finish_rows(y, pre, bias, activation);
}

// Where an epilogue writes sums: it overwrites, so what is to be added goes through scratch of the
// caching allocator.
Tensor sums_of(const Dst& db) {
  return db.add ? empty(db.tensor.shape(), {db.tensor.dtype(), db.tensor.device()}) : db.tensor;
}
void add_sums(const Dst& db, const Tensor& sums) {
  if (db.add) accumulate_to(db.tensor.device(), db, sums);
}

bool fused_bwd_weight(const Dst& dw, const Dst& db, In dy, In given_x) {
  const Tensor x = usable(given_x);
  Products p = plan_products(dw.tensor, raw::transpose(dy, 0, 1), x);
  aim(dw, &p);
  Gemm g = p.here();
  g.epilogue = p.swapped ? Epilogue::sums_of_b : Epilogue::sums_of_a;
  const Tensor sums = sums_of(db);
  g.bias = sums.raw_data();
  if (!gemm(dy.device(), g, "linear")) return false;
  add_sums(db, sums);
  return true;
}

void cuda_linear_bwd_weight(const Dst& dw, const Dst& db, In dy, In x) {
  // The library sums more than one row or column only.
  const bool may_fuse =
      db && dy.dtype() != DType::f64 && dy.size(0) > 0 && dy.size(1) > 1 && dw.tensor.numel() > 0;
  if (may_fuse && fused_bwd_weight(dw, db, dy, x)) return;
  cuda_matmul(dw, raw::transpose(dy, 0, 1), x);
  if (db) column_sums(db, dy);
}

bool fused_bwd_input(const Dst& dpre, const Dst& db, In dy, In given_w, In aux, int64_t aux_ld,
                     Activation activation) {
  const Tensor w = usable(given_w);
  Gemm g = matrix_product(dpre.tensor, dy, w);
  g.aux = aux.raw_data();
  g.aux_ld = aux_ld;
  if (activation == Activation::relu)
    g.epilogue = db ? Epilogue::drelu_sums : Epilogue::drelu;
  else
    g.epilogue = db ? Epilogue::dgelu_sums : Epilogue::dgelu;
  const Tensor sums = db ? sums_of(db) : Tensor();
  if (db) g.bias = sums.raw_data();
  if (!gemm(dy.device(), g, "linear")) return false;
  if (db) add_sums(db, sums);
  return true;
}

void cuda_linear_bwd_input(const Dst& dpre, const Dst& db, In dy, In w, In saved, In mask,
                           Activation activation) {
  const bool relu = activation == Activation::relu;
  const bool may_fuse = dpre.tensor.numel() > 0 && dy.size(1) > 0 &&
                        fuses(dpre.tensor, activation) && (!relu || mask.defined());
  if (may_fuse && fused_bwd_input(dpre, db, dy, w, relu ? mask : saved,
                                  relu ? 8 * mask.size(1) : saved.size(1), activation))
    return;
  cuda_matmul(dpre, dy, w);
  undo_activation(dpre.tensor, db, dpre.tensor, saved, activation);
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
  linear_bwd_weight.fill(DeviceType::cuda, cuda_linear_bwd_weight);
  linear_bwd_input.fill(DeviceType::cuda, cuda_linear_bwd_input);
  linear_bwd_activation.fill(DeviceType::cuda, cuda_linear_bwd_activation);
  sum_rows.fill(DeviceType::cuda, cuda_sum_rows);
}

}  // namespace cairn::kernels::cuda
