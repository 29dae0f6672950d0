// parallel_for over the library's thread pool.
// Invariant: how a range is cut into chunks may change with the thread count, so a body must not
// let its result depend on the chunk bounds (reductions cut their input into blocks of fixed size).
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

namespace cairn {

// Threads used by parallel_for, the caller included. The default is the number of processors this
// process may run on, or CAIRN_NUM_THREADS; a value of that which is no number from 1 to 1024 is an
// Error at the first use.
int num_threads();
// n from 1 to 1024, else Error. Must not be called from inside a parallel region; waits for one
// that another thread runs.
void set_num_threads(int n);

namespace detail {
using RangeFn = void (*)(void* body, int64_t begin, int64_t end);
void parallel_run(int64_t begin, int64_t end, int64_t grain, RangeFn fn, void* body);
}  // namespace detail

// Calls body(lo, hi) on disjoint chunks that cover [begin, end), each of at least `grain`
// iterations (bar the last). Runs serially when the range is one grain, inside another parallel
// region, or when another thread is using the pool. The first exception thrown by a body is thrown
// here after all chunks ended. After fork() a child starts as many threads as its parent had;
// inside a region, fork only to exec.
template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, Body&& body) {
  if (end <= begin) return;
  if (end - begin <= grain) {
    body(begin, end);
    return;
  }
  using Fn = std::remove_reference_t<Body>;
  detail::parallel_run(
      begin, end, grain, [](void* b, int64_t lo, int64_t hi) { (*static_cast<Fn*>(b))(lo, hi); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace cairn
