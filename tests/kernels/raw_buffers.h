// Helpers for tests of raw-pointer kernels: guarded buffers, repeatable values, forced CPU targets.
// Invariant: a guarded buffer has poison on both sides, and check_guards fails if a byte changed.
#pragma once

#include <hwy/targets.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "cairn/tensor/parallel.h"

namespace raw_test {

// Small repeatable numbers in (-1, 1), no two neighbours alike.
inline double value(uint64_t seed, int64_t i) {
  uint64_t z = seed * 0x9E3779B97F4A7C15ull + static_cast<uint64_t>(i) * 0xBF58476D1CE4E5B9ull + 1;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * (2.0 / 9007199254740992.0) - 1.0;
}

// `count` elements between two margins of NaN: a read outside poisons the result, a write outside
// changes the margin. The start is not aligned beyond one element.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t count, uint64_t seed = 0) : count_(count) {
    const T poison = std::numeric_limits<T>::quiet_NaN();
    data_.assign(static_cast<size_t>(count + 2 * kMargin), poison);
    if (seed != 0)
      for (int64_t i = 0; i < count; ++i) data()[i] = static_cast<T>(value(seed, i));
    margin_.assign(kMargin, poison);
  }
  T* data() { return data_.data() + kMargin; }
  const T* data() const { return data_.data() + kMargin; }
  int64_t count() const { return count_; }
  T operator[](int64_t i) const { return data()[i]; }
  bool guards_intact() const {
    const size_t bytes = kMargin * sizeof(T);
    return std::memcmp(data_.data(), margin_.data(), bytes) == 0 &&
           std::memcmp(data() + count_, margin_.data(), bytes) == 0;
  }
  bool same_bits(const Guarded& other) const {
    return count_ == other.count_ &&
           std::memcmp(data(), other.data(), static_cast<size_t>(count_) * sizeof(T)) == 0;
  }

 private:
  static constexpr int64_t kMargin = 131;
  int64_t count_;
  std::vector<T> data_, margin_;
};

// Largest |got - want| over the bound of a sum of `terms` products of numbers below 1, in units of
// that bound: at most 1 passes. NaN counts as infinite.
template <class T>
double worst_error(const T* got, const std::vector<double>& want, double terms) {
  const double bound = std::numeric_limits<T>::epsilon() * (terms + 2);
  double worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::fabs(static_cast<double>(got[i]) - want[i]) / bound;
    if (!(error <= worst))
      worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
  }
  return worst;
}

// Runs body once for every CPU target that this machine supports and the library was built for.
template <class Body>
void for_each_target(Body&& body) {
  hwy::SetSupportedTargetsForTest(0);
  const int64_t supported = hwy::SupportedTargets();
  for (int64_t targets = supported; targets != 0; targets &= targets - 1) {
    hwy::SetSupportedTargetsForTest(targets & -targets);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    body(targets & -targets);
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

// Sets the thread count and puts the old one back.
class Threads {
 public:
  explicit Threads(int n) : old_(cairn::num_threads()) { cairn::set_num_threads(n); }
  ~Threads() { cairn::set_num_threads(old_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int old_;
};

}  // namespace raw_test
