// The OpenBLAS trap: a version older than the processor falls back to kernels of 2004, several
// times slower, and whoever compares Cairn with a program on top of it measures that.
#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <optional>
#include <sstream>
#include <string_view>

#include "cairn/tensor/error.h"
#include "cli/verbs.h"

namespace cairn::cli {
namespace {

// Widths of kernels.
enum class Level { sse, avx2, avx512 };

// Of OpenBLAS's names for x86 kernels; a name that is not known here is nothing to warn of.
std::optional<Level> level_of_core(const std::string& core) {
  constexpr std::array<std::string_view, 3> kWide = {"SkylakeX", "Cooperlake", "SapphireRapids"};
  constexpr std::array<std::string_view, 2> kMiddle = {"Haswell", "Zen"};
  constexpr std::array<std::string_view, 18> kNarrow = {
      "Katmai", "Coppermine", "Northwood", "Prescott",  "Banias",       "Core2",
      "Penryn", "Dunnington", "Nehalem",   "Atom",      "Athlon",       "Opteron",
      "Bobcat", "Nano",       "Barcelona", "Bulldozer", "Opteron_SSE3", "Sandybridge"};
  for (const auto& name : kWide)
    if (core == name) return Level::avx512;
  for (const auto& name : kMiddle)
    if (core == name) return Level::avx2;
  for (const auto& name : kNarrow)
    if (core == name) return Level::sse;
  return std::nullopt;
}

struct Offer {
  Level level = Level::sse;
  const char* core = "";  // what OPENBLAS_CORETYPE calls it
};

Offer offer_of(const std::string& cpu_flags) {
  bool avx2 = false, avx512 = false, bf16 = false;
  std::istringstream words(cpu_flags);
  for (std::string word; words >> word;) {
    avx2 |= word == "avx2";
    avx512 |= word == "avx512vl";
    bf16 |= word == "avx512_bf16";
  }
  if (avx512) return {Level::avx512, bf16 ? "Cooperlake" : "SkylakeX"};
  return avx2 ? Offer{Level::avx2, "Haswell"} : Offer{};
}

}  // namespace

void print_openblas(const std::string& cpu_flags) {
  setenv("OPENBLAS_NUM_THREADS", "1", 0);  // read when it is loaded; no pool is needed here
  void* const library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    print_line("OpenBLAS", "not on this machine");
    return;
  }
  const auto text_of = [&](const char* symbol) -> std::string {
    using Function = char* (*)();
    const auto function = reinterpret_cast<Function>(dlsym(library, symbol));
    return function == nullptr ? "unknown" : function();
  };
  const std::string core = text_of("openblas_get_corename");
  print_line("OpenBLAS", cat(text_of("openblas_get_config"), ", kernels for ", core));
  const Offer offer = offer_of(cpu_flags);
  const auto level = level_of_core(core);
  if (level && *level < offer.level)
    print_line("warning", cat("OpenBLAS takes its ", core,
                              " kernels, a fraction of what this processor can do: programs that "
                              "use it (NumPy, PyTorch of Debian) are slow until OPENBLAS_CORETYPE=",
                              offer.core, " is set"));
}

}  // namespace cairn::cli
