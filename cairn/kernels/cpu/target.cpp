// The names of Highway's targets and the switch between them.
// Invariant: no kernel keeps a function that a dispatch chose, so a switch reaches all of them.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cairn/kernels/cpu/target.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "cairn/kernels/target.h"

HWY_BEFORE_NAMESPACE();
namespace cairn::kernels::cpu {
namespace HWY_NAMESPACE {

int64_t own_target() { return HWY_TARGET; }

}  // namespace HWY_NAMESPACE
}  // namespace cairn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <cctype>
#include <cstdint>

#include "cairn/tensor/error.h"

namespace cairn::kernels {
namespace cpu {
namespace {

HWY_EXPORT(own_target);

// Highway calls AVX-512 "AVX3".
std::string name_of_target(int64_t target) {
  const std::string name = hwy::TargetName(target);
  return name.rfind("AVX3", 0) == 0 ? "AVX-512" + name.substr(4) : name;
}

// Better targets have lower bits.
std::vector<int64_t> single(int64_t targets) {
  std::vector<int64_t> out;
  for (int64_t bit = 1; bit > 0 && bit <= targets; bit <<= 1)
    if ((targets & bit) != 0) out.push_back(bit);
  return out;
}

// The processor's, whatever was set.
int64_t supported() {
  static const int64_t targets = hwy::SupportedTargets();
  return targets & HWY_TARGETS;
}

std::string names(int64_t targets, std::vector<std::string>& out) {
  std::string joined;
  for (const int64_t target : single(targets)) {
    out.push_back(name_of_target(target));
    joined += (joined.empty() ? "" : ", ") + out.back();
  }
  return joined;
}

std::string folded(std::string_view text) {
  std::string out;
  for (const unsigned char c : text)
    if (c != '-') out += static_cast<char>(std::tolower(c));
  return out;
}

}  // namespace
}  // namespace cpu

std::vector<std::string> compiled_targets() {
  std::vector<std::string> out;
  cpu::names(HWY_TARGETS, out);
  return out;
}

std::vector<std::string> usable_targets() {
  std::vector<std::string> out;
  cpu::names(cpu::supported(), out);
  return out;
}

std::string current_target() {
  return cpu::name_of_target(HWY_DYNAMIC_DISPATCH(cpu::own_target)());
}

void set_target(std::string_view name) {
  int64_t wanted = 0;  // Highway's word for "no choice made"
  for (const int64_t target : cpu::single(cpu::supported()))
    if (cpu::folded(cpu::name_of_target(target)) == cpu::folded(name)) wanted = target;
  std::vector<std::string> usable;
  check(wanted != 0 || name.empty(), "set_target: name must be one of ",
        cpu::names(cpu::supported(), usable), ", got '", name, "'");
  hwy::SetSupportedTargetsForTest(wanted);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace cairn::kernels
#endif  // HWY_ONCE
