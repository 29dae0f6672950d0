// cuBLASLt: its functions, handles and plans.
// cuBLASLt thinks in columns. A row-major c [m, n] is a column-major [n, m], and c = a b read so is
// c' = b' a': every call below gives b as the library's A and a as its B.
#include "cairn/kernels/cuda/blas.h"

#include <array>
#include <bit>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "cairn/kernels/cuda/workspace.h"
#include "cairn/tensor/cuda/library.h"
#include "cairn/tensor/cuda/runtime.h"

namespace cairn::kernels::cuda {
namespace {

const BlasApi* replacement = nullptr;

struct Loaded {
  BlasApi api{};
  std::string why;
};
const BlasApi& blas_api(const char* op) {
  if (replacement != nullptr) return *replacement;
  static const Loaded loaded = [] {
    Loaded found;
    load_blas(&found.api, &found.why);
    return found;
  }();
  check(loaded.why.empty(), op, ": ", loaded.why);
  return loaded.api;
}

void check_blas(const BlasApi& api, cublasStatus_t status, const char* call, Device device) {
  check(status == CUBLAS_STATUS_SUCCESS, call, ": cuBLASLt call must succeed, got ",
        api.status_name(status), " on ", device);
}

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return CUDA_R_64F;
    case DType::f32:
      return CUDA_R_32F;
    case DType::bf16:
      return CUDA_R_16BF;
    case DType::f16:
      return CUDA_R_16F;
    default:
      fail("matmul: dtype must be a floating one, got ", dtype);
  }
}

cublasComputeType_t compute_type(const Gemm& p) {
  if (p.dtype == DType::f64) return CUBLAS_COMPUTE_64F;
  return p.dtype == DType::f32 && p.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

cublasLtEpilogue_t library_epilogue(Epilogue epilogue) {
  switch (epilogue) {
    case Epilogue::none:
      return CUBLASLT_EPILOGUE_DEFAULT;
    case Epilogue::bias:
      return CUBLASLT_EPILOGUE_BIAS;
    case Epilogue::relu:
      return CUBLASLT_EPILOGUE_RELU;
    case Epilogue::relu_bias:
      return CUBLASLT_EPILOGUE_RELU_BIAS;
    case Epilogue::gelu:
      return CUBLASLT_EPILOGUE_GELU;
    case Epilogue::gelu_bias:
      return CUBLASLT_EPILOGUE_GELU_BIAS;
    case Epilogue::relu_aux:
      return CUBLASLT_EPILOGUE_RELU_AUX;
    case Epilogue::relu_aux_bias:
      return CUBLASLT_EPILOGUE_RELU_AUX_BIAS;
    case Epilogue::gelu_aux:
      return CUBLASLT_EPILOGUE_GELU_AUX;
    case Epilogue::gelu_aux_bias:
      return CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
    case Epilogue::drelu:
      return CUBLASLT_EPILOGUE_DRELU;
    case Epilogue::drelu_sums:
      return CUBLASLT_EPILOGUE_DRELU_BGRAD;
    case Epilogue::dgelu:
      return CUBLASLT_EPILOGUE_DGELU;
    case Epilogue::dgelu_sums:
      return CUBLASLT_EPILOGUE_DGELU_BGRAD;
    case Epilogue::sums_of_a:  // which is the library's B
      return CUBLASLT_EPILOGUE_BGRADB;
    case Epilogue::sums_of_b:
      break;
  }
  return CUBLASLT_EPILOGUE_BGRADA;
}

// The library's kernels ask for 16 bytes at most; more alignment makes no other plan.
int64_t alignment_of(const void* pointer) {
  constexpr uintptr_t kMost = 16;
  return static_cast<int64_t>(uintptr_t{1}
                              << std::countr_zero(reinterpret_cast<uintptr_t>(pointer) | kMost));
}

// All that a plan depends on.
using Key = std::array<int64_t, 19>;
Key key_of(const Gemm& p) {
  return {static_cast<int64_t>(p.dtype), static_cast<int64_t>(p.c_dtype), p.tf32, p.add, p.m, p.n,
          p.k, p.batch, p.a.transposed, p.a.ld, p.a.batch_stride, p.b.transposed, p.b.ld,
          p.b.batch_stride, p.ldc, p.c_batch_stride, static_cast<int64_t>(p.epilogue), p.aux_ld,
          // five alignments of at most 16, each a digit
          (((alignment_of(p.a.data) * 32 + alignment_of(p.b.data)) * 32 + alignment_of(p.c)) * 32 +
           alignment_of(p.bias)) *
                  32 +
              alignment_of(p.aux)};
}

struct Plan {
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algo{};
  int64_t workspace = 0;
  bool found = false;
};

struct DeviceBlas {
  cublasLtHandle_t handle = nullptr;
  std::map<Key, Plan> plans;
};

struct State {
  std::mutex mutex;
  std::map<int, DeviceBlas> devices;
};
// Never destroyed, as the library's handles may not outlive the driver.
State& state() {
  static State* const state = new State;
  return *state;
}

class Planner {
 public:
  Planner(const BlasApi& api, Device device, const Gemm& problem)
      : api_(api), device_(device), p_(problem) {}

  Plan make(cublasLtHandle_t handle) {
    Plan plan;
    ok(api_.desc_create(&plan.desc, compute_type(p_),
                        p_.dtype == DType::f64 ? CUDA_R_64F : CUDA_R_32F),
       "cublasLtMatmulDescCreate");
    set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, operation(p_.b));
    set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSB, operation(p_.a));
    set(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, library_epilogue(p_.epilogue));
    if (p_.aux != nullptr) set(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p_.aux_ld);
    plan.a = layout(p_.dtype, p_.n, p_.k, p_.b.transposed, p_.b.ld, p_.b.batch_stride);
    plan.b = layout(p_.dtype, p_.k, p_.m, p_.a.transposed, p_.a.ld, p_.a.batch_stride);
    plan.c = layout(p_.c_dtype, p_.n, p_.m, false, p_.ldc, p_.c_batch_stride);
    set_pointers(plan.desc);
    choose(handle, &plan);
    return plan;
  }

  // The heuristics read these for their alignment, the product for their values.
  void set_pointers(cublasLtMatmulDesc_t desc) const {
    if (p_.bias != nullptr) set(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p_.bias);
    if (p_.aux != nullptr) set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p_.aux);
  }

 private:
  void ok(cublasStatus_t status, const char* call) const {
    check_blas(api_, status, call, device_);
  }

  static cublasOperation_t operation(const Operand& operand) {
    return operand.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
  }

  template <class Value>
  void set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
           const Value& value) const {
    ok(api_.desc_set(desc, attribute, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
  }

  cublasLtMatrixLayout_t layout(DType dtype, int64_t rows, int64_t cols, bool transposed,
                                int64_t ld, int64_t batch_stride) const {
    if (transposed) std::swap(rows, cols);
    cublasLtMatrixLayout_t made = nullptr;
    ok(api_.layout_create(&made, data_type(dtype), static_cast<uint64_t>(rows),
                          static_cast<uint64_t>(cols), ld),
       "cublasLtMatrixLayoutCreate");
    if (p_.batch == 1) return made;
    const auto count = static_cast<int32_t>(p_.batch);
    ok(api_.layout_set(made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count),
       "cublasLtMatrixLayoutSetAttribute");
    ok(api_.layout_set(made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &batch_stride,
                       sizeof batch_stride),
       "cublasLtMatrixLayoutSetAttribute");
    return made;
  }

  template <class Value>
  void prefer(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
              const Value& value) const {
    ok(api_.preference_set(preference, attribute, &value, sizeof value),
       "cublasLtMatmulPreferenceSetAttribute");
  }

  void choose(cublasLtHandle_t handle, Plan* plan) const {
    cublasLtMatmulPreference_t wishes = nullptr;
    ok(api_.preference_create(&wishes), "cublasLtMatmulPreferenceCreate");
    const std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>,
                          cublasStatus_t (*)(cublasLtMatmulPreference_t)>
        guard(wishes, api_.preference_destroy);
    prefer(wishes, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kBlasWorkspace));
    // Parts of a split sum are added in the compute type and in a fixed order: exact enough for
    // 16-bit results, and the same bits every time.
    prefer(wishes, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    const auto bytes = [](const void* p) { return static_cast<uint32_t>(alignment_of(p)); };
    prefer(wishes, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, bytes(p_.b.data));
    prefer(wishes, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, bytes(p_.a.data));
    prefer(wishes, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, bytes(p_.c));
    prefer(wishes, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, bytes(p_.c));
    cublasLtMatmulHeuristicResult_t best{};
    int count = 0;
    const cublasStatus_t status = api_.heuristic(handle, plan->desc, plan->a, plan->b, plan->c,
                                                 plan->c, wishes, 1, &best, &count);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) return;
    ok(status, "cublasLtMatmulAlgoGetHeuristic");
    if (count == 0 || best.state != CUBLAS_STATUS_SUCCESS) return;
    plan->algo = best.algo;
    plan->workspace = static_cast<int64_t>(best.workspaceSize);
    plan->found = true;
  }

  const BlasApi& api_;
  Device device_;
  const Gemm& p_;
};

DeviceBlas& blas_of(const BlasApi& api, State& all, Device device) {
  DeviceBlas& own = all.devices[device.index];
  if (own.handle == nullptr) check_blas(api, api.create(&own.handle), "cublasLtCreate", device);
  return own;
}

}  // namespace

bool load_blas(BlasApi* api, std::string* why) {
  cairn::cuda::Library library("cuBLASLt", cat("libcublasLt.so.", CUBLAS_VER_MAJOR));
  library.find_as(&api->create, "cublasLtCreate");
  library.find_as(&api->status_name, "cublasLtGetStatusName");
  library.find_as(&api->matmul, "cublasLtMatmul");
  library.find_as(&api->heuristic, "cublasLtMatmulAlgoGetHeuristic");
  library.find_as(&api->desc_create, "cublasLtMatmulDescCreate");
  library.find_as(&api->desc_destroy, "cublasLtMatmulDescDestroy");
  library.find_as(&api->desc_set, "cublasLtMatmulDescSetAttribute");
  library.find_as(&api->layout_create, "cublasLtMatrixLayoutCreate");
  library.find_as(&api->layout_destroy, "cublasLtMatrixLayoutDestroy");
  library.find_as(&api->layout_set, "cublasLtMatrixLayoutSetAttribute");
  library.find_as(&api->preference_create, "cublasLtMatmulPreferenceCreate");
  library.find_as(&api->preference_destroy, "cublasLtMatmulPreferenceDestroy");
  library.find_as(&api->preference_set, "cublasLtMatmulPreferenceSetAttribute");
  *why = library.why();
  return library.complete();
}

void set_blas_api(const BlasApi* api) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  all.devices.clear();  // descriptors of the other table are left to it
  replacement = api;
}

bool gemm(Device device, const Gemm& problem, const char* op) {
  const BlasApi& api = blas_api(op);
  const cairn::cuda::DeviceGuard guard(device);
  State& all = state();
  const std::lock_guard lock(all.mutex);
  DeviceBlas& own = blas_of(api, all, device);
  Planner planner(api, device, problem);
  const Key key = key_of(problem);
  auto at = own.plans.find(key);
  if (at == own.plans.end())
    at = own.plans.emplace(key, planner.make(own.handle)).first;
  else
    planner.set_pointers(at->second.desc);
  const Plan& plan = at->second;
  if (!plan.found) {
    check(problem.epilogue != Epilogue::none, op, ": cuBLASLt must have an algorithm for [",
          problem.m, ", ", problem.k, "] x [", problem.k, ", ", problem.n, "] of ", problem.dtype,
          ", got none");
    return false;
  }
  // Read by the call itself, also while it is captured.
  const double one = 1, zero = 0;
  const float one_f = 1, zero_f = 0;
  const bool wide = problem.dtype == DType::f64;
  const void* const alpha = wide ? static_cast<const void*>(&one) : &one_f;
  const void* const beta = wide ? static_cast<const void*>(problem.add ? &one : &zero)
                                : (problem.add ? &one_f : &zero_f);
  check_blas(api,
             api.matmul(own.handle, plan.desc, alpha, problem.b.data, plan.a, problem.a.data,
                        plan.b, beta, problem.c, plan.c, problem.c, plan.c, &plan.algo,
                        workspace(device, plan.workspace), static_cast<size_t>(plan.workspace),
                        cairn::cuda::current_stream(device)),
             "cublasLtMatmul", device);
  return true;
}

}  // namespace cairn::kernels::cuda
