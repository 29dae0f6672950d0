// The instruction set of the CPU kernels: chosen at run time, the best one first.
// Invariant: names are those that `cairn doctor` prints; results of different instruction sets
// agree within rounding, not bit for bit.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cairn::kernels {

// What the kernels were compiled for, best first: "AVX-512", "AVX2", "SSE2" on x86.
std::vector<std::string> compiled_targets();
// Those of them that this processor has.
std::vector<std::string> usable_targets();
// What kernels run with now, as the code that runs says.
std::string current_target();
// Makes all kernels use this instruction set; letter case and dashes do not matter ("avx512").
// "" goes back to the best. Throws Error for one that is not usable. Not while kernels run.
void set_target(std::string_view name);

}  // namespace cairn::kernels
