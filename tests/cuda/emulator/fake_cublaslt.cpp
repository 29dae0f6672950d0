// cuBLASLt over host memory: descriptors that are checked, and products by plain loops.
#include <cmath>
#include <cstring>
#include <set>
#include <utility>
#include <vector>

#include "cairn/tensor/dtype.h"
#include "tests/cuda/emulator/fakes.h"
#include "tests/cuda/emulator/queue.h"

namespace cairn::emulator {
namespace {

std::string last_complaint;
BlasLog log;
bool epilogues_refused = false;
std::set<cublasLtEpilogue_t> refused;

cublasStatus_t refuse(const std::string& text,
                      cublasStatus_t status = CUBLAS_STATUS_INVALID_VALUE) {
  complain("cuBLASLt: " + text);
  return status;
}

struct Desc {
  cublasComputeType_t compute;
  cudaDataType_t scale;
  cublasOperation_t op_a = CUBLAS_OP_N, op_b = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  void* bias = nullptr;
  void* aux = nullptr;
  int64_t aux_ld = 0;
};
struct Layout {
  cudaDataType_t type;
  int64_t rows, cols, ld;
  int32_t batch = 1;
  int64_t batch_stride = 0;
};
struct Preference {
  uint64_t workspace = 0;
  uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_MASK;
  uint32_t alignment[4] = {256, 256, 256, 256};
};
// What an algorithm was chosen for; lies in cublasLtMatmulAlgo_t's opaque words.
struct Algo {
  uint64_t problem = 0;
  uint32_t alignment[4] = {};
  uint64_t workspace = 0;
};
static_assert(sizeof(Algo) <= sizeof(cublasLtMatmulAlgo_t));

struct Opaque {  // what the handle points to
  int dummy = 0;
};

Desc* of(cublasLtMatmulDesc_t p) { return reinterpret_cast<Desc*>(p); }
Layout* of(cublasLtMatrixLayout_t p) { return reinterpret_cast<Layout*>(p); }
Preference* of(cublasLtMatmulPreference_t p) { return reinterpret_cast<Preference*>(p); }

cublasStatus_t create(cublasLtHandle_t* handle) {
  *handle = reinterpret_cast<cublasLtHandle_t>(new Opaque);
  return CUBLAS_STATUS_SUCCESS;
}
const char* status_name(cublasStatus_t status) {
  static std::string text;
  text = "status " + std::to_string(static_cast<int>(status)) + " (" + last_complaint + ")";
  return text.c_str();
}

cublasStatus_t desc_create(cublasLtMatmulDesc_t* out, cublasComputeType_t compute,
                           cudaDataType_t scale) {
  const bool wide = compute == CUBLAS_COMPUTE_64F;
  if (scale != (wide ? CUDA_R_64F : CUDA_R_32F)) return refuse("scale type must fit compute type");
  *out = reinterpret_cast<cublasLtMatmulDesc_t>(new Desc{compute, scale});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t desc_destroy(cublasLtMatmulDesc_t desc) {
  delete of(desc);
  return CUBLAS_STATUS_SUCCESS;
}

template <class Value>
cublasStatus_t take(Value* to, const void* from, size_t bytes) {
  if (bytes != sizeof(Value)) return refuse("attribute must have its own size");
  std::memcpy(to, from, bytes);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t desc_set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t which,
                        const void* value, size_t bytes) {
  switch (which) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return take(&of(desc)->op_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return take(&of(desc)->op_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return take(&of(desc)->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return take(&of(desc)->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
      return take(&of(desc)->aux, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
      return take(&of(desc)->aux_ld, value, bytes);
    default:
      return refuse("attribute of the product must be a known one");
  }
}

cublasStatus_t layout_create(cublasLtMatrixLayout_t* out, cudaDataType_t type, uint64_t rows,
                             uint64_t cols, int64_t ld) {
  *out = reinterpret_cast<cublasLtMatrixLayout_t>(
      new Layout{type, static_cast<int64_t>(rows), static_cast<int64_t>(cols), ld});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t layout_destroy(cublasLtMatrixLayout_t layout) {
  delete of(layout);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t layout_set(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t which,
                          const void* value, size_t bytes) {
  switch (which) {
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      return take(&of(layout)->batch, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      return take(&of(layout)->batch_stride, value, bytes);
    default:
      return refuse("attribute of a layout must be a known one");
  }
}

cublasStatus_t preference_create(cublasLtMatmulPreference_t* out) {
  *out = reinterpret_cast<cublasLtMatmulPreference_t>(new Preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t preference_destroy(cublasLtMatmulPreference_t preference) {
  delete of(preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t preference_set(cublasLtMatmulPreference_t preference,
                              cublasLtMatmulPreferenceAttributes_t which, const void* value,
                              size_t bytes) {
  Preference* const p = of(preference);
  switch (which) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return take(&p->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return take(&p->reductions, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return take(&p->alignment[0], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return take(&p->alignment[1], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      return take(&p->alignment[2], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return take(&p->alignment[3], value, bytes);
    default:
      return refuse("preference must be a known one");
  }
}

struct Problem {
  Desc desc;
  Layout a, b, c, d;
  int64_t m, n, k;
};

// What the bits of an epilogue's number say.
struct Meaning {
  bool relu, gelu, adds_bias, drelu, dgelu, sums_rows, sums_a, sums_b, aux;
  explicit Meaning(cublasLtEpilogue_t e)
      : relu(e & 2),
        gelu(e & 32),
        adds_bias(e & 4),
        drelu(e & 8),
        dgelu(e & 64),
        sums_rows(e & 16),
        sums_a(e == CUBLASLT_EPILOGUE_BGRADA),
        sums_b(e == CUBLASLT_EPILOGUE_BGRADB),
        aux(e & 128) {}
  bool writes_bias() const { return sums_rows || sums_a || sums_b; }
  bool is_gradient() const { return drelu || dgelu || writes_bias(); }
  bool bits() const { return aux && (relu || drelu); }
};

bool types_fit(const Problem& p) {
  if (p.a.type != p.b.type || p.c.type != p.d.type) return false;
  switch (p.desc.compute) {
    case CUBLAS_COMPUTE_64F:
      return p.a.type == CUDA_R_64F && p.c.type == CUDA_R_64F;
    case CUBLAS_COMPUTE_32F_FAST_TF32:
      return p.a.type == CUDA_R_32F && p.c.type == CUDA_R_32F;
    case CUBLAS_COMPUTE_32F:
      return (p.a.type == CUDA_R_32F || p.a.type == CUDA_R_16BF || p.a.type == CUDA_R_16F) &&
             (p.c.type == p.a.type || p.c.type == CUDA_R_32F);
    default:
      return false;
  }
}

cublasStatus_t check_epilogue(const Problem& p) {
  const Meaning e(p.desc.epilogue);
  if (p.desc.compute == CUBLAS_COMPUTE_64F || epilogues_refused ||
      refused.count(p.desc.epilogue) != 0)
    return refuse("epilogue", CUBLAS_STATUS_NOT_SUPPORTED);
  // What the library has been seen to refuse.
  if (e.is_gradient() && p.k == 1) return refuse("inner size of 1", CUBLAS_STATUS_NOT_SUPPORTED);
  if ((e.sums_a && p.m == 1) || (e.sums_b && p.n == 1))
    return refuse("sum of one line", CUBLAS_STATUS_NOT_SUPPORTED);
  if (e.writes_bias() && p.d.batch > 1) return refuse("sums of a batch need places of their own");
  if ((e.adds_bias || e.writes_bias()) != (p.desc.bias != nullptr))
    return refuse("bias must be given where it is used");
  if (e.aux != (p.desc.aux != nullptr)) return refuse("aux must be given where it is used");
  if (e.aux && (p.desc.aux_ld % (e.bits() ? 128 : 8) != 0 || p.desc.aux_ld < p.m))
    return refuse(
        "aux's leading dimension must be a multiple of 8, of 128 for bits, and at least "
        "the rows");
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t check_problem(Problem* p) {
  const bool ta = p->desc.op_a == CUBLAS_OP_T, tb = p->desc.op_b == CUBLAS_OP_T;
  p->m = ta ? p->a.cols : p->a.rows;
  p->k = ta ? p->a.rows : p->a.cols;
  p->n = tb ? p->b.rows : p->b.cols;
  if ((tb ? p->b.cols : p->b.rows) != p->k) return refuse("inner sizes must agree");
  if (p->d.rows != p->m || p->d.cols != p->n) return refuse("result must be [m, n]");
  if (p->c.rows != p->m || p->c.cols != p->n) return refuse("C must be [m, n]");
  for (const Layout* l : {&p->a, &p->b, &p->c, &p->d}) {
    if (l->rows < 1 || l->cols < 1) return refuse("sizes must be positive");
    if (l->ld < l->rows) return refuse("leading dimension must be at least the rows");
    if (l->batch != p->d.batch) return refuse("batch counts must be equal");
  }
  if (!types_fit(*p)) return refuse("types must fit the compute type", CUBLAS_STATUS_NOT_SUPPORTED);
  return p->desc.epilogue == CUBLASLT_EPILOGUE_DEFAULT ? CUBLAS_STATUS_SUCCESS : check_epilogue(*p);
}

uint64_t hash_of(const Problem& p) {
  uint64_t h = 14695981039346656037u;
  const auto mix = [&](int64_t v) { h = (h ^ static_cast<uint64_t>(v)) * 1099511628211u; };
  for (int64_t v : {int64_t{p.desc.compute}, int64_t{p.desc.op_a}, int64_t{p.desc.op_b},
                    int64_t{p.desc.epilogue}, p.desc.aux_ld})
    mix(v);
  for (const Layout* l : {&p.a, &p.b, &p.c, &p.d})
    for (int64_t v :
         {int64_t{l->type}, l->rows, l->cols, l->ld, int64_t{l->batch}, l->batch_stride})
      mix(v);
  return h;
}

Problem problem_of(cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                   cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d) {
  return {*of(desc), *of(a), *of(b), *of(c), *of(d), 0, 0, 0};
}

cublasStatus_t heuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                         cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                         cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference,
                         int wanted, cublasLtMatmulHeuristicResult_t* results, int* count) {
  const auto lock = lock_devices();
  ++log.heuristics;
  *count = 0;
  Problem p = problem_of(desc, a, b, c, d);
  if (const cublasStatus_t status = check_problem(&p)) return status;
  if (of(preference)->reductions & CUBLASLT_REDUCTION_SCHEME_INPLACE)
    return refuse("sums must not be formed in an order of chance");
  Algo algo;
  algo.problem = hash_of(p);
  std::memcpy(algo.alignment, of(preference)->alignment, sizeof algo.alignment);
  algo.workspace = p.k > 16 ? 1000 : 0;
  if (wanted < 1 || algo.workspace > of(preference)->workspace) return CUBLAS_STATUS_NOT_SUPPORTED;
  results[0] = {};
  std::memcpy(&results[0].algo, &algo, sizeof algo);
  results[0].workspaceSize = algo.workspace;
  results[0].state = CUBLAS_STATUS_SUCCESS;
  *count = 1;
  return CUBLAS_STATUS_SUCCESS;
}

double load(cudaDataType_t type, const void* p, int64_t i) {
  if (type == CUDA_R_64F) return static_cast<const double*>(p)[i];
  if (type == CUDA_R_32F) return static_cast<const float*>(p)[i];
  if (type == CUDA_R_16F) return static_cast<float>(static_cast<const float16*>(p)[i]);
  return static_cast<float>(static_cast<const bfloat16*>(p)[i]);
}
void store(cudaDataType_t type, void* p, int64_t i, double value) {
  if (type == CUDA_R_64F)
    static_cast<double*>(p)[i] = value;
  else if (type == CUDA_R_32F)
    static_cast<float*>(p)[i] = static_cast<float>(value);
  else if (type == CUDA_R_16F)
    static_cast<float16*>(p)[i] = float16(static_cast<float>(value));
  else
    static_cast<bfloat16*>(p)[i] = bfloat16(static_cast<float>(value));
}

// Ten bits of mantissa, as tensor cores read f32.
double to_tf32(double value) {
  auto bits = std::bit_cast<uint32_t>(static_cast<float>(value));
  bits = (bits + 0x1000u) & 0xffffe000u;
  return std::bit_cast<float>(bits);
}

struct Pointers {
  const void* a;
  const void* b;
  const void* c;
  void* d;
  double alpha, beta;
};

constexpr double kRoot = 0.79788456080286535588;  // of 2 / pi
double gelu(double x) { return x / 2 * (1 + std::tanh(kRoot * (x + 0.044715 * x * x * x))); }
double gelu_slope(double x) {
  const double t = std::tanh(kRoot * (x + 0.044715 * x * x * x));
  return (1 + t) / 2 + x / 2 * (1 - t * t) * kRoot * (1 + 3 * 0.044715 * x * x);
}

// The bits of relu: of one column after the other, the first in the lowest bit of its byte.
void set_bit(void* bits, int64_t at, bool on) {
  uint8_t& byte = static_cast<uint8_t*>(bits)[at / 8];
  byte = static_cast<uint8_t>((byte & ~(1u << at % 8)) | (on ? 1u << at % 8 : 0u));
}
bool bit(const void* bits, int64_t at) {
  return static_cast<const uint8_t*>(bits)[at / 8] >> at % 8 & 1;
}

double finish(const Problem& p, int64_t row, int64_t at, double value) {
  const Meaning e(p.desc.epilogue);
  if (e.adds_bias) value += load(p.d.type, p.desc.bias, row);
  if (e.drelu) return bit(p.desc.aux, at) ? value : 0;
  if (e.dgelu) return value * gelu_slope(load(p.d.type, p.desc.aux, at));
  if (e.aux && e.relu) set_bit(p.desc.aux, at, value > 0);
  if (e.aux && e.gelu) store(p.d.type, p.desc.aux, at, value);
  if (e.relu) return value < 0 ? 0 : value;
  return e.gelu ? gelu(value) : value;
}

// Element [row, l] of op(A) and [l, col] of op(B), of batch z.
double of_a(const Problem& p, const void* a, int64_t z, int64_t row, int64_t l) {
  const bool turned = p.desc.op_a == CUBLAS_OP_T;
  return load(p.a.type, a, z * p.a.batch_stride + (turned ? row * p.a.ld + l : l * p.a.ld + row));
}
double of_b(const Problem& p, const void* b, int64_t z, int64_t l, int64_t col) {
  const bool turned = p.desc.op_b == CUBLAS_OP_T;
  return load(p.b.type, b, z * p.b.batch_stride + (turned ? l * p.b.ld + col : col * p.b.ld + l));
}

// The gradients of a bias that are sums of an operand over the inner size: of A's rows, B's
// columns.
void sum_operand(const Problem& p, const Pointers& at) {
  const Meaning e(p.desc.epilogue);
  for (int64_t i = 0; i < (e.sums_a ? p.m : e.sums_b ? p.n : 0); ++i) {
    double sum = 0;
    for (int64_t l = 0; l < p.k; ++l)
      sum += e.sums_a ? of_a(p, at.a, 0, i, l) : of_b(p, at.b, 0, l, i);
    store(p.d.type, p.desc.bias, i, sum);
  }
}

void compute(const Problem& p, const Pointers& at) {
  const bool fast = p.desc.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
  std::vector<double> row_sums(static_cast<size_t>(p.m));
  for (int64_t z = 0; z < p.d.batch; ++z)
    for (int64_t col = 0; col < p.n; ++col)
      for (int64_t row = 0; row < p.m; ++row) {
        double sum = 0;
        for (int64_t l = 0; l < p.k; ++l) {
          const double x = of_a(p, at.a, z, row, l), y = of_b(p, at.b, z, l, col);
          sum += fast ? to_tf32(x) * to_tf32(y) : x * y;
        }
        double value = at.alpha * sum;
        if (at.beta != 0)
          value += at.beta * load(p.c.type, at.c, z * p.c.batch_stride + col * p.c.ld + row);
        value = finish(p, row, col * p.desc.aux_ld + row, value);
        row_sums[static_cast<size_t>(row)] += value;
        store(p.d.type, at.d, z * p.d.batch_stride + col * p.d.ld + row, value);
      }
  if (Meaning(p.desc.epilogue).sums_rows)
    for (int64_t row = 0; row < p.m; ++row)
      store(p.d.type, p.desc.bias, row, row_sums[static_cast<size_t>(row)]);
  sum_operand(p, at);
}

bool aligned(const void* p, uint32_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

cublasStatus_t matmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void* alpha, const void* a,
                      cublasLtMatrixLayout_t la, const void* b, cublasLtMatrixLayout_t lb,
                      const void* beta, const void* c, cublasLtMatrixLayout_t lc, void* d,
                      cublasLtMatrixLayout_t ld, const cublasLtMatmulAlgo_t* chosen,
                      void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  Problem p = problem_of(desc, la, lb, lc, ld);
  if (const cublasStatus_t status = check_problem(&p)) return status;
  Algo algo;
  std::memcpy(static_cast<void*>(&algo), chosen, sizeof algo);
  if (algo.problem != hash_of(p)) return refuse("algorithm must be one for this problem");
  if (!aligned(a, algo.alignment[0]) || !aligned(b, algo.alignment[1]) ||
      !aligned(c, algo.alignment[2]) || !aligned(d, algo.alignment[3]))
    return refuse("operands must be aligned as the algorithm was chosen for");
  if (workspace_bytes < algo.workspace || (algo.workspace > 0 && workspace == nullptr))
    return refuse("workspace must be as large as the algorithm's");
  if (!aligned(workspace, 16)) return refuse("workspace must be aligned to 16 bytes");
  const bool wide = p.desc.scale == CUDA_R_64F;
  const auto scalar = [&](const void* s) {
    return wide ? *static_cast<const double*>(s) : *static_cast<const float*>(s);
  };
  const auto lock = lock_devices();
  ++log.products;
  log.batched += p.d.batch > 1;
  log.with_epilogue += p.desc.epilogue != CUBLASLT_EPILOGUE_DEFAULT;
  ++log.epilogues[p.desc.epilogue];
  log.fast_tf32 += p.desc.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
  log.longest_k = std::max(log.longest_k, p.k);
  const Pointers at{a, b, c, d, scalar(alpha), scalar(beta)};
  enqueue(stream, [p, at, workspace, bytes = algo.workspace] {
    if (bytes > 0) std::memset(workspace, 0xEE, bytes);
    compute(p, at);
  });
  return CUBLAS_STATUS_SUCCESS;
}

constexpr kernels::cuda::BlasApi kFake{.create = create,
                                       .status_name = status_name,
                                       .matmul = matmul,
                                       .heuristic = heuristic,
                                       .desc_create = desc_create,
                                       .desc_destroy = desc_destroy,
                                       .desc_set = desc_set,
                                       .layout_create = layout_create,
                                       .layout_destroy = layout_destroy,
                                       .layout_set = layout_set,
                                       .preference_create = preference_create,
                                       .preference_destroy = preference_destroy,
                                       .preference_set = preference_set};

const bool installed = [] {
  kernels::cuda::set_blas_api(&kFake);
  return true;
}();

}  // namespace

std::string complaint() { return std::exchange(last_complaint, ""); }
void complain(const std::string& text) { last_complaint = text; }
BlasLog& blas_log() { return log; }
const kernels::cuda::BlasApi& fake_blas() { return kFake; }
void refuse_epilogues(bool on) {
  epilogues_refused = on;
  refused.clear();
}
void refuse_epilogue(cublasLtEpilogue_t one) { refused.insert(one); }

}  // namespace cairn::emulator
