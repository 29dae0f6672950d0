// What the machine can do: multiply-adds on registers, and copies between large buffers.
// Invariant: nothing of the library's own kernels is used, so that they can be held against it.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/peak.cpp"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "bench/jobs.h"
#include "cairn/tensor/parallel.h"

#ifndef CAIRN_BENCH_PEAK_CHAINS
#define CAIRN_BENCH_PEAK_CHAINS
namespace cairn::bench {
constexpr int kChains = 12;  // independent sums: more than latency times units of any CPU known
}
#endif

HWY_BEFORE_NAMESPACE();
namespace cairn::bench {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

const char* target() { return hwy::TargetName(HWY_TARGET); }

// Multiply-adds one after another in kChains registers; returns how many floats a register has.
// `seed` keeps the compiler from knowing the values, `sink` from dropping them.
HWY_ATTR int chains(int64_t rounds, float seed, float* sink) {
  const hn::ScalableTag<float> d;
  const auto m = hn::Set(d, 0.999f), c = hn::Set(d, seed);
  auto s0 = hn::Set(d, seed + 0), s1 = hn::Set(d, seed + 1), s2 = hn::Set(d, seed + 2);
  auto s3 = hn::Set(d, seed + 3), s4 = hn::Set(d, seed + 4), s5 = hn::Set(d, seed + 5);
  auto s6 = hn::Set(d, seed + 6), s7 = hn::Set(d, seed + 7), s8 = hn::Set(d, seed + 8);
  auto s9 = hn::Set(d, seed + 9), s10 = hn::Set(d, seed + 10), s11 = hn::Set(d, seed + 11);
  for (int64_t i = 0; i < rounds; ++i) {
    s0 = hn::MulAdd(s0, m, c), s1 = hn::MulAdd(s1, m, c), s2 = hn::MulAdd(s2, m, c);
    s3 = hn::MulAdd(s3, m, c), s4 = hn::MulAdd(s4, m, c), s5 = hn::MulAdd(s5, m, c);
    s6 = hn::MulAdd(s6, m, c), s7 = hn::MulAdd(s7, m, c), s8 = hn::MulAdd(s8, m, c);
    s9 = hn::MulAdd(s9, m, c), s10 = hn::MulAdd(s10, m, c), s11 = hn::MulAdd(s11, m, c);
  }
  s0 = hn::Add(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)), hn::Add(s4, s5));
  s6 = hn::Add(hn::Add(hn::Add(s6, s7), hn::Add(s8, s9)), hn::Add(s10, s11));
  *sink = hn::GetLane(hn::Add(s0, s6));
  return static_cast<int>(hn::Lanes(d));
}

}  // namespace HWY_NAMESPACE
}  // namespace cairn::bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cairn::bench {
namespace {

HWY_EXPORT(target);
HWY_EXPORT(chains);

constexpr int kRepeats = 5;
constexpr int64_t kRounds = 1'000'000;  // some milliseconds
constexpr size_t kHugePage = size_t{2} << 20;

// Bytes of a copied buffer: four times the L3 cache where the system tells its size.
size_t copied_bytes() {
  long l3 = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE
  l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
  const long bytes = std::clamp(4 * l3, 128L << 20, 1024L << 20);
  return static_cast<size_t>(bytes) / kHugePage * kHugePage;
}

struct Free {
  void operator()(char* block) const { std::free(block); }
};

// Written, so that the pages are there; on huge pages where possible, as the library's memory is.
std::unique_ptr<char, Free> buffer(size_t bytes) {
  std::unique_ptr<char, Free> block(static_cast<char*>(std::aligned_alloc(kHugePage, bytes)));
  if (!block) throw std::bad_alloc();
  madvise(block.get(), bytes, MADV_HUGEPAGE);
  std::memset(block.get(), 1, bytes);
  return block;
}

}  // namespace

json fma_peak() {
  std::vector<double> gflops;
  const int threads = num_threads();
  std::vector<float> sinks(static_cast<size_t>(threads) * 64);  // a cache line apart and more
  volatile float seed = 0.001f;
  int lanes = 0;
  HWY_DYNAMIC_DISPATCH(chains)(kRounds / 10, seed, sinks.data());  // the clock rises
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const double start = now();
    parallel_for(0, threads, 1, [&](int64_t lo, int64_t hi) {
      for (int64_t i = lo; i < hi; ++i) {
        const int width = HWY_DYNAMIC_DISPATCH(chains)(kRounds, seed, &sinks[size_t(i) * 64]);
        if (i == 0) lanes = width;
      }
    });
    gflops.push_back(2e-9 * kChains * static_cast<double>(kRounds) * lanes * threads /
                     (now() - start));
  }
  return {{"gflops", gflops}, {"target", HWY_DYNAMIC_DISPATCH(target)()}};
}

json bandwidth() {
  const size_t bytes = copied_bytes();
  const auto from = buffer(bytes), to = buffer(bytes);
  std::vector<double> gbytes;
  const int64_t threads = num_threads();
  const size_t part = bytes / static_cast<size_t>(threads);
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const double start = now();
    parallel_for(0, threads, 1, [&](int64_t lo, int64_t hi) {
      const size_t begin = static_cast<size_t>(lo) * part;
      std::memcpy(to.get() + begin, from.get() + begin, static_cast<size_t>(hi - lo) * part);
    });
    gbytes.push_back(2e-9 * static_cast<double>(part * threads) / (now() - start));
  }
  return {{"gbytes", gbytes}};
}

}  // namespace cairn::bench
#endif
