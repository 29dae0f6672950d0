// The op table: one entry per op with its cases, a double-precision reference and its error texts.
// Tests and `cairn check` run the same table. Entries register themselves; no list is kept.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "cairn/tensor/tensor.h"

namespace cairn::check_table {

using Inputs = std::span<const Tensor>;
using Op = std::function<Tensor(Inputs)>;

// One call of an op. Floating inputs are given in f64 and converted to the dtype under test;
// others are passed as they are.
struct Case {
  std::string name;  // what is awkward about it: "stride 2, odd size"
  std::vector<Tensor> inputs;
  // The public op with its attributes bound.
  Op op;
  // The same in double precision, by plain loops or another independent way; gets contiguous f64
  // inputs (already rounded to the dtype under test) and must not record.
  Op reference;
  // Length of the longest sum behind one output element (forward) and one gradient element.
  int64_t terms = 1;
  // Inputs whose gradient is checked; empty: every floating input.
  std::vector<bool> grads;
  bool differentiable = true;
  // Off for ops whose derivative jumps inside the inputs' own steps (max over ties, say).
  bool numeric_gradient = true;
  // Largest absolute error per eps for one term, where the op itself amplifies (exp of big values);
  // see tolerance().
  double amplification = 1;
  double gradient_amplification = 0;  // the same for gradients; 0: as amplification
};

struct ErrorCase {
  std::function<void()> call;
  std::string text;  // the whole message
};

struct Entry {
  std::string op;      // "conv2d"
  std::string family;  // "conv": file name in check/
  std::function<std::vector<Case>()> cases;
  std::vector<DType> dtypes = {DType::f64, DType::f32, DType::bf16, DType::f16};
  std::function<std::vector<ErrorCase>()> errors;
  // Work of one call of cases()[0] at benchmark size, for timing: FLOPs or bytes; 0 = not timed.
  double work = 0;
};

// All entries, by family and op.
const std::vector<Entry>& entries();

// Registers an entry from a namespace-scope object: `const Register conv2d{{.op = "conv2d", …}};`
struct Register {
  explicit Register(Entry entry);
};

// |error| allowed for an output of magnitude `scale` after a sum of `terms` products in `dtype`:
// eps(dtype) * scale * amplification * (4 + sqrt(terms)) — rounding errors of a sum walk randomly,
// so they grow with the square root of its length; 4 covers the conversion of inputs and output.
// Sums of halves are kept in f32, so only the conversions count there.
double tolerance(DType dtype, int64_t terms, double scale, double amplification);

// Deterministic values in (-1, 1), different for each seed; f64.
Tensor values(const Shape& shape, uint64_t seed);
// As values, but all different by at least 1 / numel and in scrambled order, so that maxima are
// unique.
Tensor distinct_values(const Shape& shape, uint64_t seed);

struct Verdict {
  std::string op;
  DType dtype = DType::f32;
  int cases = 0;
  double error = 0;           // largest |error| / tolerance-scale seen (forward)
  double allowed = 0;         // the tolerance of that case, on the same scale
  double gradient_error = 0;  // largest gradcheck error, relative (f64), or against f64 gradients
  std::vector<std::string> failures;  // one sentence each
  bool passed() const { return failures.empty(); }
};

// Runs all cases of an entry in one dtype: forward against the reference, strided inputs, poisoned
// outputs, guard bytes, bitwise repeat on 1, 2 and 4 threads, gradcheck (f64), gradients against
// f64's, and `add` (a second backward accumulates). On another device than the CPU: forward and
// gradients against the CPU's in double precision, strided inputs, bitwise repeat, `add`.
Verdict run(const Entry& entry, DType dtype, Device device = {});

}  // namespace cairn::check_table
