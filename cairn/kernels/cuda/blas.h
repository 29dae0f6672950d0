// Matrix products by cuBLASLt.
// Invariant: a product's plan (descriptors and algorithm) is made once per device and shape and
// kept; a call then allocates nothing but, the first time, its stream's workspace.
#pragma once

#include <cublasLt.h>

#include <string>

#include "cairn/tensor/device.h"
#include "cairn/tensor/dtype.h"

namespace cairn::kernels::cuda {

// The functions of cuBLASLt that are used.
struct BlasApi {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtGetStatusName) status_name;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatrixLayoutSetAttribute) layout_set;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
};
// Opens the library; false with the reason in *why.
bool load_blas(BlasApi* api, std::string* why);
// What products use instead of the installed library; null: the installed one. For tests. Forgets
// all plans.
void set_blas_api(const BlasApi* api);

// An operand [rows, cols] in memory: rows of adjacent elements, `ld` apart, or, transposed,
// columns.
struct Operand {
  const void* data = nullptr;
  bool transposed = false;
  int64_t ld = 1;
  int64_t batch_stride = 0;  // elements
};

// What is done to the product before it is written, and what is written beside it.
enum class Epilogue : uint8_t {
  none,
  bias,
  relu,
  relu_bias,
  gelu,
  gelu_bias,
  relu_aux,  // aux: bits of where relu lets a gradient through
  relu_aux_bias,
  gelu_aux,  // aux: the value before gelu
  gelu_aux_bias,
  drelu,       // times the derivative that aux tells of
  drelu_sums,  // and c's column sums into bias
  dgelu,
  dgelu_sums,
  sums_of_a,  // sums of a's rows into bias
  sums_of_b   // sums of b's columns into bias
};

// c [m, n] (+)= a [m, k] b [k, n] for each of `batch`, c in rows `ldc` apart; m, n, k, batch >= 1.
struct Gemm {
  DType dtype = DType::f32;    // of a and b; sums are kept in f32 (f64 for f64)
  DType c_dtype = DType::f32;  // of c, bias and gelu's aux: dtype, or f32 for a 16-bit one
  bool tf32 = false;           // f32 operands may be rounded to TF32
  bool add = false;
  int64_t m = 0, n = 0, k = 0, batch = 1;
  Operand a, b;
  void* c = nullptr;
  int64_t ldc = 1;
  int64_t c_batch_stride = 0;
  Epilogue epilogue = Epilogue::none;
  void* bias = nullptr;  // [n] ([m] for sums_of_a), read or overwritten
  void* aux = nullptr;   // like c
  int64_t aux_ld = 0;    // elements: a multiple of 8, for bits of 128
};
// Queues it on the device's current stream. False, and nothing done, where the library has no
// algorithm for it (an epilogue it does not know for these types); without an epilogue that throws.
bool gemm(Device device, const Gemm& problem, const char* op);

}  // namespace cairn::kernels::cuda
