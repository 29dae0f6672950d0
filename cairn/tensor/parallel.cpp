// The thread pool: workers spin for a moment after each region, then sleep.
// Invariant: one region runs at a time. Every thread first works through its own share of the
// range, the same one in every region over that range, so that what it wrote last time is still in
// its cache; only then does it take chunks from the others' shares.
#include "cairn/tensor/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "cairn/tensor/cpu_allocator.h"
#include "cairn/tensor/error.h"

namespace cairn {
namespace {

// Longer than the gap between two regions of a training step, shorter than a scheduler tick.
constexpr int kSpins = 20000;
constexpr int64_t kChunksPerThread = 4;
constexpr int kMaxThreads = 1024;  // as many processors as a cpu_set_t has

thread_local bool inside_region = false;

void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int default_threads() {
  if (const char* text = std::getenv("CAIRN_NUM_THREADS")) {
    int n = 0;
    const char* const end = text + std::strlen(text);
    const auto [stop, error] = std::from_chars(text, end, n);
    check(error == std::errc() && stop == end && n >= 1 && n <= kMaxThreads,
          "threads: CAIRN_NUM_THREADS must be 1 to ", kMaxThreads, ", got '", text, "'");
    return n;
  }
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

class Pool {
 public:
  Pool() {
    cpu_allocator();  // registers first: a region that fork() waits for may allocate
    pthread_atfork([] { pool().before_fork(); }, [] { pool().after_fork(false); },
                   [] { pool().after_fork(true); });
  }
  ~Pool() { stop(); }
  static Pool& pool() {
    static Pool pool;
    return pool;
  }

  // 0 before the first use.
  int threads() const { return threads_.load(std::memory_order_relaxed); }

  // Waits for a region that another thread runs.
  void resize(int threads) {
    const std::lock_guard lock(mutex_);
    const int before = this->threads();
    if (threads == before) return;
    stop();
    try {
      start(threads);
    } catch (...) {
      if (before > 0) start(before);
      throw;
    }
  }

  // The number of threads, which start now at the first use.
  int started_threads() {
    if (const int n = threads(); n > 0) return n;
    const std::lock_guard lock(mutex_);
    if (threads() == 0) start(wanted_ > 0 ? wanted_ : default_threads());
    return threads();
  }

  // False when another thread is using the pool.
  bool try_run(int64_t begin, int64_t end, int64_t chunk, detail::RangeFn fn, void* body) {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || shares_.size() < 2) return false;
    chunk_ = chunk;
    fn_ = fn;
    body_ = body;
    error_ = nullptr;
    failed_.store(false, std::memory_order_relaxed);
    // Shares are whole chunks, so that a body sees at most one chunk below the grain.
    const int64_t chunks = (end - begin + chunk - 1) / chunk;
    const auto count = static_cast<int64_t>(shares_.size());
    for (int64_t i = 0; i < count; ++i) {
      shares_[static_cast<size_t>(i)].next.store(begin + chunks * i / count * chunk,
                                                 std::memory_order_relaxed);
      shares_[static_cast<size_t>(i)].end = std::min(end, begin + chunks * (i + 1) / count * chunk);
    }
    running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
    drain(0);
    for (int spins = 0; running_.load(std::memory_order_acquire) != 0; ++spins) {
      if (spins < kSpins)
        cpu_relax();
      else
        std::this_thread::yield();
    }
    if (error_) std::rethrow_exception(error_);
    return true;
  }

  // Around fork(): the child has none of the workers, so it starts its own when it first needs
  // them. A region of another thread ends first; forking inside a region is only good for exec.
  void before_fork() {
    if (!inside_region) mutex_.lock();
  }
  void after_fork(bool child) {
    if (child) {
      parents_ = new std::vector<std::thread>(std::move(workers_));
      workers_.clear();
      running_.store(0);
      if (const int n = threads(); n > 0) wanted_ = n;
      threads_.store(0);
    }
    if (!inside_region) mutex_.unlock();
  }

 private:
  void start(int threads) {
    shares_ = std::vector<Share>(static_cast<size_t>(threads));
    stop_ = false;
    try {
      for (int i = 1; i < threads; ++i)
        workers_.emplace_back(
            [this, i, seen = epoch_.load()] { work(static_cast<size_t>(i), seen); });
    } catch (const std::exception& e) {  // the system's limit of threads
      const size_t started = workers_.size() + 1;
      stop();
      fail("threads: the system must allow ", threads, ", got ", started, ": ", e.what());
    }
    threads_.store(threads, std::memory_order_relaxed);
  }

  void stop() {
    stop_ = true;
    epoch_.fetch_add(1);
    epoch_.notify_all();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
  }

  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  void drain(size_t thread) {
    inside_region = true;
    for (size_t i = 0; i < shares_.size(); ++i) take(shares_[(thread + i) % shares_.size()]);
    inside_region = false;
  }

  void take(Share& share) {
    for (;;) {
      const int64_t lo = share.next.fetch_add(chunk_, std::memory_order_relaxed);
      if (lo >= share.end) break;
      if (failed_.load(std::memory_order_relaxed)) continue;
      try {
        fn_(body_, lo, std::min(lo + chunk_, share.end));
      } catch (...) {
        if (!failed_.exchange(true)) error_ = std::current_exception();
      }
    }
  }

  void work(size_t thread, uint32_t seen) {
    for (;;) {
      for (int i = 0; i < kSpins && epoch_.load(std::memory_order_acquire) == seen; ++i)
        cpu_relax();
      epoch_.wait(seen, std::memory_order_acquire);
      seen = epoch_.load(std::memory_order_acquire);
      if (stop_) return;
      drain(thread);
      running_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex mutex_;  // held while a region runs and while the workers change
  std::atomic<int> threads_{0};
  int wanted_ = 0;  // of a forked child: as many as its parent had
  std::vector<Share> shares_;
  int64_t chunk_ = 1;
  detail::RangeFn fn_ = nullptr;
  void* body_ = nullptr;
  std::exception_ptr error_;
  std::atomic<bool> failed_{false};
  alignas(64) std::atomic<int> running_{0};
  alignas(64) std::atomic<uint32_t> epoch_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
  std::vector<std::thread>* parents_ = nullptr;  // in a forked child: never to be joined
};

}  // namespace

int num_threads() { return Pool::pool().started_threads(); }

void set_num_threads(int n) {
  check(n >= 1, "set_num_threads: n must be at least 1, got ", n);
  check(n <= kMaxThreads, "set_num_threads: n must be at most ", kMaxThreads, ", got ", n);
  check(!inside_region, "set_num_threads: must not be called inside a parallel region");
  Pool::pool().resize(n);
}

namespace detail {

void parallel_run(int64_t begin, int64_t end, int64_t grain, RangeFn fn, void* body) {
  if (!inside_region) {
    Pool& p = Pool::pool();
    if (const int threads = p.started_threads(); threads > 1) {
      const int64_t pieces = kChunksPerThread * threads;
      const int64_t chunk = std::max({grain, (end - begin + pieces - 1) / pieces, int64_t{1}});
      if (p.try_run(begin, end, chunk, fn, body)) return;
    }
  }
  fn(body, begin, end);
}

}  // namespace detail
}  // namespace cairn
