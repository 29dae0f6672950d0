// The threads of a block as fibers that take turns: each runs until it ends or waits for others.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "tests/cuda/emulator/block.h"
#include "tests/cuda/emulator/emulator.h"
#include "tests/cuda/emulator/emulator_control.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace cairn::emulator {

Position position;

namespace {

constexpr size_t kStack = 128 << 10;

enum class State { ready, block_wait, warp_wait, ended };

struct Fiber {
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStack);
  ucontext_t start;
  jmp_buf at;
  bool started = false;  // its stack has begun to run
  int thread = -1;
  void* fake_stack = nullptr;  // the address sanitizer's
};

struct Thread {
  State state = State::ready;
  Fiber* fiber = nullptr;
  unsigned mask = 0;  // lanes that a warp wait is about
  int predicate = 0;
  const void* give = nullptr;
};

struct Block {
  const char* name = "";
  const std::function<void()>* body = nullptr;
  dim3 size;
  std::vector<Thread> threads;
  int alive = 0;
  int waiting = 0;
  int count = 0;  // of predicates at the block barrier
  int last_count = 0;
};

Block block;
std::vector<std::unique_ptr<Fiber>> idle;
std::vector<std::unique_ptr<Fiber>> busy;
Fiber* running = nullptr;
jmp_buf scheduler;
bool backwards = false;
std::vector<unsigned char> shared_bytes;
#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_stack = nullptr;
size_t scheduler_stack_size = 0;
#endif

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "emulator: kernel %s: %s\n", block.name, what);
  std::abort();
}

Thread& self() { return block.threads[static_cast<size_t>(running->thread)]; }

void set_position(int thread) {
  const auto t = static_cast<unsigned>(thread);
  position.thread = {t % block.size.x, t / block.size.x % block.size.y,
                     t / (block.size.x * block.size.y)};
}

void to_scheduler(bool last) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &running->fake_stack, scheduler_stack,
                                 scheduler_stack_size);
#else
  static_cast<void>(last);
#endif
  _longjmp(scheduler, 1);
}

// Gives the turn to another thread; comes back when this one is resumed.
void yield() {
  Fiber* const me = running;
  if (_setjmp(me->at) == 0) to_scheduler(false);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(me->fake_stack, nullptr, nullptr);
#endif
  set_position(me->thread);
}

void fiber_main() {
  for (;;) {  // a fiber serves one thread after another
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(running->fake_stack, &scheduler_stack, &scheduler_stack_size);
#endif
    set_position(running->thread);
    (*block.body)();
    self().state = State::ended;
    Fiber* const me = running;
    if (_setjmp(me->at) == 0) to_scheduler(false);
  }
}

void resume(Fiber* fiber) {
  running = fiber;
  if (_setjmp(scheduler) == 0) {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber->stack.get(), kStack);
#endif
    if (fiber->started) _longjmp(fiber->at, 1);
    fiber->started = true;
    getcontext(&fiber->start);
    fiber->start.uc_stack.ss_sp = fiber->stack.get();
    fiber->start.uc_stack.ss_size = kStack;
    fiber->start.uc_link = nullptr;
    makecontext(&fiber->start, fiber_main, 0);
    setcontext(&fiber->start);
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void run_thread(int index) {
  Thread& thread = block.threads[static_cast<size_t>(index)];
  if (thread.fiber == nullptr) {
    if (idle.empty()) idle.push_back(std::make_unique<Fiber>());
    thread.fiber = idle.back().get();
    thread.fiber->thread = index;
    busy.push_back(std::move(idle.back()));
    idle.pop_back();
  }
  Fiber* const fiber = thread.fiber;
  resume(fiber);
  if (thread.state != State::ended) return;
  --block.alive;
  thread.fiber = nullptr;
  const auto at =
      std::find_if(busy.begin(), busy.end(), [&](const auto& f) { return f.get() == fiber; });
  idle.push_back(std::move(*at));
  busy.erase(at);
}

// Whether all lanes that a waiting thread's mask names wait for the same exchange.
bool warp_is_complete(size_t index) {
  const size_t first = index / 32 * 32;
  const unsigned mask = block.threads[index].mask;
  for (size_t lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    const size_t other = first + lane;
    if (other >= block.threads.size()) continue;
    if (block.threads[other].state != State::warp_wait) return false;
    if (block.threads[other].mask != mask) die("lanes of one warp wait with different masks");
  }
  return true;
}

// Releases waits whose threads are all there; whether any was.
bool release_waits() {
  bool any = false;
  for (size_t i = 0; i < block.threads.size(); ++i) {
    if (block.threads[i].state != State::warp_wait || !warp_is_complete(i)) continue;
    const size_t first = i / 32 * 32;
    const unsigned mask = block.threads[i].mask;
    for (size_t lane = 0; lane < 32 && first + lane < block.threads.size(); ++lane)
      if (mask >> lane & 1u) block.threads[first + lane].state = State::ready;
    any = true;
  }
  if (any || block.waiting == 0 || block.waiting < block.alive) return any;
  block.last_count = block.count;
  block.count = block.waiting = 0;
  for (Thread& t : block.threads)
    if (t.state == State::block_wait) t.state = State::ready;
  return true;
}

}  // namespace

void* dynamic_shared() { return shared_bytes.data(); }
void set_backwards(bool on) { backwards = on; }

void block_barrier() { block_count(0); }

int block_count(int predicate) {
  Thread& me = self();
  me.state = State::block_wait;
  ++block.waiting;
  block.count += predicate != 0;
  yield();
  return block.last_count;
}

int lane() { return running->thread % 32; }

void warp_barrier(unsigned mask) {
  Thread& me = self();
  if ((mask >> lane() & 1u) == 0) die("a lane waits for a warp without itself");
  me.mask = mask;
  me.state = State::warp_wait;
  yield();
}

void warp_exchange(unsigned mask, const void* give, void* take, size_t bytes, int from) {
  self().give = give;
  warp_barrier(mask);
  const size_t other = static_cast<size_t>(running->thread / 32 * 32 + from);
  const bool there = other < block.threads.size() && (mask >> from & 1u) != 0;
  std::memcpy(take, there ? block.threads[other].give : give, bytes);
  warp_barrier(mask);  // the givers' values must live until all have read
}

unsigned warp_ballot(unsigned mask, int predicate) {
  self().predicate = predicate;
  warp_barrier(mask);
  unsigned out = 0;
  const size_t first = static_cast<size_t>(running->thread / 32 * 32);
  for (size_t lane = 0; lane < 32 && first + lane < block.threads.size(); ++lane)
    if ((mask >> lane & 1u) != 0 && block.threads[first + lane].predicate != 0) out |= 1u << lane;
  warp_barrier(mask);
  return out;
}

void run_block(const char* name, dim3 at, dim3 blocks, dim3 threads, size_t shared,
               const std::function<void()>& body) {
  block.name = name;
  block.body = &body;
  block.size = threads;
  const size_t count = size_t{threads.x} * threads.y * threads.z;
  block.threads.assign(count, Thread{});
  block.alive = static_cast<int>(count);
  block.waiting = block.count = 0;
  position.block = {at.x, at.y, at.z};
  position.block_size = threads;
  position.grid_size = blocks;
  shared_bytes.assign(shared + 16, 0xFF);  // not zeros: nobody may count on them
  while (block.alive > 0) {
    bool ran = false;
    for (size_t i = 0; i < count; ++i) {
      const size_t index = backwards ? count - 1 - i : i;
      if (block.threads[index].state != State::ready) continue;
      run_thread(static_cast<int>(index));
      ran = true;
    }
    if (!release_waits() && !ran) die("threads wait for others that never come");
  }
}

}  // namespace cairn::emulator
