// Shared libraries that are opened when something first needs them, so that a program starts fast
// and runs where they are not installed.
// Invariant: opening never throws; what is missing is told in one sentence by why().
#pragma once

#include <string>

namespace cairn::cuda {

class Library {
 public:
  // Looks for `file` ("libcudnn.so.9") in the folders of CAIRN_CUDA_LIBRARY_PATH (a colon list),
  // then where the system looks, then in the toolkit's folder that was found at build time.
  // `title` names the library in sentences.
  Library(const char* title, std::string file);

  // Null when the library or the symbol is missing; the first of those stays in why().
  void* find(const char* symbol);
  // As find, with the type of the function: find_as(&table.create, "cublasLtCreate").
  template <class Function>
  void find_as(Function* function, const char* symbol) {
    *function = reinterpret_cast<Function>(find(symbol));
  }
  // Whether everything asked for so far was there.
  bool complete() const { return why_.empty(); }
  // "cuBLASLt must be installed, but libcublasLt.so.13 was found neither in …"; empty if complete.
  const std::string& why() const { return why_; }

 private:
  const char* title_;
  std::string file_;
  void* handle_ = nullptr;  // never closed: its kernels may be in use until the process ends
  std::string why_;
};

}  // namespace cairn::cuda
