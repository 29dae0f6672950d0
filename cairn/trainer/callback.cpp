// The default name of a callback's state: its class, without namespaces.
#include "cairn/trainer/callback.h"

#include <cxxabi.h>

#include <cstdlib>
#include <typeinfo>

namespace cairn::trainer {

std::string Callback::state_key() const {
  int status = 0;
  char* text = abi::__cxa_demangle(typeid(*this).name(), nullptr, nullptr, &status);
  std::string name = status == 0 ? text : typeid(*this).name();
  std::free(text);
  const size_t colon = name.rfind("::");
  return colon == std::string::npos ? name : name.substr(colon + 2);
}

}  // namespace cairn::trainer
