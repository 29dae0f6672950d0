// Opening libraries by dlopen.
#include "cairn/tensor/cuda/library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <string_view>
#include <utility>
#include <vector>

#include "cairn/tensor/error.h"

namespace cairn::cuda {
namespace {

constexpr const char* kVariable = "CAIRN_CUDA_LIBRARY_PATH";

std::vector<std::string> folders_of(std::string_view list) {
  std::vector<std::string> folders;
  while (!list.empty()) {
    const size_t end = std::min(list.find(':'), list.size());
    if (end > 0) folders.emplace_back(list.substr(0, end));
    list.remove_prefix(std::min(end + 1, list.size()));
  }
  return folders;
}

// Local: the symbols of two versions in one process must not mix.
void* open(const std::string& path) { return dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL); }

}  // namespace

Library::Library(const char* title, std::string file) : title_(title), file_(std::move(file)) {
  const char* const variable = std::getenv(kVariable);
  for (const std::string& folder : folders_of(variable == nullptr ? "" : variable))
    if (handle_ == nullptr) handle_ = open(folder + "/" + file_);
  if (handle_ == nullptr) handle_ = open(file_);
  const std::string_view toolkit = CAIRN_CUDA_LIBRARIES;
  if (handle_ == nullptr && !toolkit.empty()) handle_ = open(cat(toolkit, "/", file_));
  if (handle_ != nullptr) return;
  why_ = cat(title_, " must be installed, but ", file_, " was found neither in ", kVariable, " (",
             variable == nullptr ? "not set" : variable, ") nor where the system looks");
  if (!toolkit.empty()) why_ += cat(" nor in ", toolkit);
}

void* Library::find(const char* symbol) {
  if (handle_ == nullptr) return nullptr;
  void* const found = dlsym(handle_, symbol);
  if (found == nullptr && why_.empty())
    why_ = cat(title_, " must have the function ", symbol, ", but ", file_, " has it not");
  return found;
}

}  // namespace cairn::cuda
