// Runs the op table. Every check works on the public op alone, so a new entry needs no code here.
#include "check/op_table.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/gradcheck.h"
#include "cairn/tensor/cpu_allocator.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/parallel.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"

namespace cairn::check_table {
namespace {

std::vector<Entry>& table() {
  static std::vector<Entry> all;
  return all;
}

double eps_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 0x1p-52;
    case DType::f32:
      return 0x1p-23;
    case DType::f16:
      return 0x1p-10;
    default:
      return 0x1p-7;
  }
}

// The case's inputs on the device and, the floating ones, in the dtype under test, contiguous.
std::vector<Tensor> in_dtype(const Case& c, DType dtype, Device device) {
  std::vector<Tensor> out;
  for (const Tensor& t : c.inputs) {
    if (!t.defined())
      out.push_back(t);
    else
      out.push_back(raw::clone(
          raw::contiguous(raw::to(t, is_floating(t.dtype()) ? dtype : t.dtype(), device))));
  }
  return out;
}

// What the reference and the gradients in double precision start from.
std::vector<Tensor> to_f64(const std::vector<Tensor>& inputs, Device device) {
  std::vector<Tensor> out;
  for (const Tensor& t : inputs) {
    if (!t.defined())
      out.push_back(t);
    else
      out.push_back(
          raw::clone(raw::to(t, is_floating(t.dtype()) ? DType::f64 : t.dtype(), device)));
  }
  return out;
}

// The same values in memory with gaps and another order of dimensions.
Tensor scattered(const Tensor& t) {
  if (!t.defined() || t.dim() == 0) return t;
  Shape shape(t.shape().size(), 0);
  Shape back(t.shape().size(), 0);
  for (size_t i = 0; i < shape.size(); ++i) {
    shape[i] = t.shape()[shape.size() - 1 - i];
    back[i] = static_cast<int64_t>(shape.size() - 1 - i);
  }
  Shape wide = shape;
  wide[wide.size() - 1] = wide.back() * 2 + 1;
  Tensor buffer = empty(wide, {t.dtype(), t.device()});
  const int64_t last = t.dim() - 1;
  Tensor gaps = raw::slice(buffer, last, 1, 1 + 2 * shape.back(), 2);
  Tensor view = raw::permute(gaps, back);
  raw::copy_(view, t);
  return view;
}

Tensor on_host(const Tensor& t) { return raw::contiguous(raw::to(t, t.dtype(), kCPU)); }

bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = on_host(a);
  const Tensor y = on_host(b);
  return x.shape() == y.shape() && x.dtype() == y.dtype() &&
         (x.numel() == 0 ||
          std::memcmp(x.raw_data(), y.raw_data(), static_cast<size_t>(x.nbytes())) == 0);
}

struct Difference {
  double error = 0;  // largest |a - b|
  double scale = 0;  // largest finite |b|
  bool finite_agree = true;
};

Difference difference(const Tensor& a, const Tensor& b) {
  const Tensor x = on_host(raw::to(a, DType::f64, kCPU));
  const Tensor y = on_host(raw::to(b, DType::f64, kCPU));
  // What a's dtype makes of a number too big for it.
  const Tensor rounded = is_half(a.dtype()) ? raw::to(raw::to(y, a.dtype()), DType::f64) : y;
  Difference d;
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double u = x.data<double>()[i];
    const double v = y.data<double>()[i];
    if (!std::isfinite(v) || !std::isfinite(u)) {
      const double w = rounded.data<double>()[i];
      d.finite_agree &= u == w || (std::isnan(u) && std::isnan(w));
      continue;
    }
    d.error = std::max(d.error, std::abs(u - v));
    d.scale = std::max(d.scale, std::abs(v));
  }
  return d;
}

// One case in one dtype on its way through all the checks.
class Runner {
 public:
  Runner(const Entry& entry, const Case& c, DType dtype, Device device, Verdict& verdict)
      : entry_(entry),
        case_(c),
        dtype_(dtype),
        device_(device),
        verdict_(verdict),
        inputs_(in_dtype(c, dtype, device)) {
    wants_ = c.grads;
    if (wants_.empty())
      for (const Tensor& t : inputs_)
        wants_.push_back(c.differentiable && t.defined() && is_floating(t.dtype()));
    differentiable_ = std::any_of(wants_.begin(), wants_.end(), [](bool w) { return w; });
  }

  void run() {
    try {
      forward();
      layouts();
      poisoned();
      repeats();
      if (differentiable_) gradients();
    } catch (const std::exception& e) {
      failure("throws", cat("'", e.what(), "'"));
    }
  }

 private:
  void failure(const char* what, const std::string& detail) {
    verdict_.failures.push_back(
        cat(entry_.op, " ", dtype_, " (", case_.name, "): ", what, " ", detail));
  }

  // `what` is compared with `expected`; records the worst error seen.
  void compare(const char* what, const Tensor& got, const Tensor& expected, bool is_forward) {
    if (got.shape() != expected.shape()) {
      failure(what, cat("shape must be ", expected.shape(), ", got ", got.shape()));
      return;
    }
    const Difference d = difference(got, expected);
    const double scale = std::max(d.scale, 1.0);
    const bool exact = !is_floating(got.dtype());
    const bool own = !is_forward && case_.gradient_amplification > 0;
    const double amplification = own ? case_.gradient_amplification : case_.amplification;
    const double allowed = exact ? 0 : tolerance(dtype_, case_.terms, scale, amplification);
    if (!d.finite_agree || !(d.error <= allowed))
      failure(what, cat("must agree within ", allowed, ", got ", d.error,
                        d.finite_agree ? "" : " and NaN or infinity in other places"));
    const double relative = d.error / scale;
    if (is_forward) {
      if (relative >= verdict_.error) {
        verdict_.error = relative;
        verdict_.allowed = allowed / scale;
      }
    } else {
      verdict_.gradient_error = std::max(verdict_.gradient_error, relative);
    }
  }

  void forward() {
    NoGrad no_grad;
    out_ = case_.op(inputs_);
    compare("result", out_, case_.reference(to_f64(inputs_, kCPU)), true);
  }

  void layouts() {
    NoGrad no_grad;
    std::vector<Tensor> strided;
    for (const Tensor& t : inputs_) strided.push_back(scattered(t));
    compare("result on strided inputs", case_.op(strided), case_.reference(to_f64(inputs_, kCPU)),
            true);
  }

  // Fresh memory full of NaN and fences: an element left unwritten or a write out of bounds shows.
  void poisoned() {
    const int64_t before = guard_violations();
    set_allocator_checks(true);
    try {
      std::vector<Tensor> inputs = fresh();
      const Tensor out = case_.op(inputs);
      if (!same_bits(out, out_)) failure("result in poisoned memory", "must not change, but did");
      if (differentiable_ && out.numel() > 0 && requires_grad(out)) {
        backward(out, upstream(out));
        const Tensor g = first_gradient(inputs);
        const double finite = difference(g, g).scale;
        if (!difference(g, zeros_like(g)).finite_agree && std::isfinite(finite) && all_finite(out_))
          failure("gradient in poisoned memory", "must be finite, but is not");
      }
    } catch (...) {
      set_allocator_checks(false);
      throw;
    }
    set_allocator_checks(false);
    if (guard_violations() != before) failure("guard bytes", "must stay, but were written to");
  }

  void repeats() {
    const int threads_before = num_threads();
    const auto [out, grads] = forward_backward();
    for (int threads : {1, 2, 4}) {
      if (device_ != kCPU && threads > 1) break;
      set_num_threads(threads);
      const auto [again, grads_again] = forward_backward();
      if (!same_bits(again, out))
        failure("result", cat("must repeat bit for bit, but differs on ", threads, " threads"));
      for (size_t i = 0; i < grads.size(); ++i)
        if (grads[i].defined() && !same_bits(grads_again[i], grads[i]))
          failure("gradient", cat("of input ", i, " must repeat bit for bit, but differs on ",
                                  threads, " threads"));
    }
    set_num_threads(threads_before);
  }

  void gradients() {
    const auto [out, grads] = forward_backward();
    // f64 gradients of the same rounded inputs are the truth for the narrower dtypes.
    std::vector<Tensor> wide = to_f64(inputs_, kCPU);
    if (dtype_ == DType::f64 && case_.numeric_gradient && device_ == kCPU) {
      const GradcheckResult r = gradcheck(case_.op, wide, {}, wants_);
      if (!r.passed) failure("gradcheck", r.message);
      verdict_.gradient_error = std::max(verdict_.gradient_error, r.max_error);
    }
    if (dtype_ != DType::f64 || device_ != kCPU) {
      for (size_t i = 0; i < wide.size(); ++i)
        if (wants_[i]) set_requires_grad(wide[i]);
      const Tensor y = case_.op(wide);
      if (y.numel() > 0) backward(y, raw::to(upstream(out), DType::f64, kCPU));
      for (size_t i = 0; i < wide.size(); ++i)
        if (wants_[i] && grads[i].defined()) compare("gradient", grads[i], grad(wide[i]), false);
    }
    accumulates(grads);
  }

  // A second backward must add to the gradient that is there.
  void accumulates(const std::vector<Tensor>& grads) {
    std::vector<Tensor> inputs = fresh();
    for (int pass = 0; pass < 2; ++pass) {
      const Tensor out = case_.op(inputs);
      if (out.numel() == 0) return;
      backward(out, upstream(out));
    }
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!wants_[i] || !grads[i].defined()) continue;
      const Tensor once = on_host(raw::to(grads[i], DType::f64, kCPU));
      Tensor twice = raw::clone(once);
      for (int64_t k = 0; k < once.numel(); ++k)
        twice.data<double>()[k] = 2 * once.data<double>()[k];
      if (!grad(inputs[i]).defined()) {
        failure("second backward", cat("must keep the gradient of input ", i));
        continue;
      }
      const Difference d = difference(grad(inputs[i]), twice);
      if (!d.finite_agree ||
          d.error > tolerance(dtype_, case_.terms, std::max(1.0, d.scale), case_.amplification))
        failure("second backward",
                cat("must double the gradient of input ", i, ", error ", d.error));
    }
  }

  std::vector<Tensor> fresh() const {
    std::vector<Tensor> inputs;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      const Tensor& t = inputs_[i];
      inputs.push_back(t.defined() ? raw::clone(t) : t);
      if (wants_[i]) set_requires_grad(inputs.back());
    }
    return inputs;
  }

  Tensor upstream(const Tensor& out) const {
    return raw::to(values(out.shape(), 77), out.dtype(), out.device());
  }

  std::pair<Tensor, std::vector<Tensor>> forward_backward() const {
    std::vector<Tensor> inputs = fresh();
    const Tensor out = case_.op(inputs);
    std::vector<Tensor> grads(inputs.size());
    if (differentiable_ && requires_grad(out)) {
      if (out.numel() > 0) backward(out, upstream(out));
      for (size_t i = 0; i < inputs.size(); ++i)
        if (wants_[i]) grads[i] = grad(inputs[i]);
    }
    return {detach(out), grads};
  }

  Tensor first_gradient(const std::vector<Tensor>& inputs) const {
    for (size_t i = 0; i < inputs.size(); ++i)
      if (wants_[i] && grad(inputs[i]).defined()) return grad(inputs[i]);
    return zeros({1});
  }

  static bool all_finite(const Tensor& t) {
    const Tensor x = on_host(raw::to(t, DType::f64, kCPU));
    return std::all_of(x.data<double>(), x.data<double>() + x.numel(),
                       [](double v) { return std::isfinite(v); });
  }

  const Entry& entry_;
  const Case& case_;
  DType dtype_;
  Device device_;
  Verdict& verdict_;
  std::vector<Tensor> inputs_;
  std::vector<bool> wants_;
  bool differentiable_ = false;
  Tensor out_;
};

}  // namespace

const std::vector<Entry>& entries() {
  auto& all = table();
  std::sort(all.begin(), all.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.family, a.op) < std::tie(b.family, b.op);
  });
  return all;
}

Register::Register(Entry entry) { table().push_back(std::move(entry)); }

double tolerance(DType dtype, int64_t terms, double scale, double amplification) {
  const double conversions = 4 * eps_of(dtype);
  // Sums of halves are kept in f32.
  const double sum_eps = eps_of(compute_dtype(dtype));
  return scale * amplification *
         (conversions + sum_eps * std::sqrt(static_cast<double>(std::max<int64_t>(terms, 1))));
}

Tensor values(const Shape& shape, uint64_t seed) {
  Tensor t = empty(shape, {DType::f64});
  Generator generator(seed);
  uniform_(t, -1, 1, generator);
  return t;
}

Tensor distinct_values(const Shape& shape, uint64_t seed) {
  const int64_t n = numel_of(shape);
  Generator generator(seed);
  const Tensor order = randperm(n, generator);
  Tensor t = empty(shape, {DType::f64});
  for (int64_t i = 0; i < n; ++i)
    t.data<double>()[i] =
        2 * (static_cast<double>(order.data<int64_t>()[i]) + 0.5) / static_cast<double>(n) - 1;
  return t;
}

namespace {

// The tolerances are f32's own, which TF32 would break.
class ExactProducts {
 public:
  ExactProducts() {
    cuda::settings().matmul_allow_tf32 = false;
    cuda::settings().conv_allow_tf32 = false;
  }
  ~ExactProducts() {
    cuda::settings().matmul_allow_tf32 = matmul_;
    cuda::settings().conv_allow_tf32 = conv_;
  }
  ExactProducts(const ExactProducts&) = delete;
  ExactProducts& operator=(const ExactProducts&) = delete;

 private:
  bool matmul_ = cuda::settings().matmul_allow_tf32, conv_ = cuda::settings().conv_allow_tf32;
};

}  // namespace

Verdict run(const Entry& entry, DType dtype, Device device) {
  const ExactProducts exact;
  Verdict verdict;
  verdict.op = entry.op;
  verdict.dtype = dtype;
  for (const Case& c : entry.cases()) {
    ++verdict.cases;
    Runner(entry, c, dtype, device, verdict).run();
  }
  if (entry.errors && device == kCPU) {  // the calls make their tensors there
    for (const ErrorCase& e : entry.errors()) {
      std::string got = "no error";
      try {
        e.call();
      } catch (const Error& error) {
        got = error.what();
      }
      if (got != e.text)
        verdict.failures.push_back(
            cat(entry.op, ": error must be '", e.text, "', got '", got, "'"));
    }
  }
  return verdict;
}

}  // namespace cairn::check_table
