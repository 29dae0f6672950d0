// A ring of slots under one mutex. Invariant: see prefetcher.h.
#include "cairn/data/prefetcher.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <utility>

#include "cairn/tensor/error.h"

namespace cairn::data {

struct Prefetcher::Shared {
  struct Slot {
    bool ready = false;
    Batch batch;
    std::exception_ptr error;
  };

  // Waits for `ready`; false when the time ran out.
  template <class Ready>
  bool wait(std::condition_variable& condition, std::unique_lock<std::mutex>& lock, Ready ready) {
    if (options.timeout_s > 0)
      return condition.wait_for(lock, std::chrono::duration<double>(options.timeout_s), ready);
    condition.wait(lock, ready);
    return true;
  }

  Slot& slot(int64_t batch) { return slots[static_cast<size_t>(batch % options.capacity)]; }

  std::function<Batch(int64_t)> fetch;
  Options options;
  std::mutex mutex;
  std::condition_variable arrived;  // the consumer waits: a slot became ready, a worker ended
  std::condition_variable room;     // workers wait: a slot was taken, or stop
  std::vector<Slot> slots;
  int64_t claimed = 0;   // next batch that a worker will make
  int64_t consumed = 0;  // next batch that the consumer will take
  int running = 0;
  bool stop = false;
};

void Prefetcher::work(const std::shared_ptr<Shared>& shared) {
  Shared& s = *shared;
  std::unique_lock lock(s.mutex);
  while (true) {
    s.room.wait(lock, [&] {
      return s.stop || s.claimed >= s.options.last || s.claimed < s.consumed + s.options.capacity;
    });
    if (s.stop || s.claimed >= s.options.last) break;
    const int64_t batch = s.claimed++;
    lock.unlock();
    Batch made;
    std::exception_ptr error;
    try {
      made = s.fetch(batch);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    Shared::Slot& slot = s.slot(batch);
    slot.batch = std::move(made);
    slot.error = std::exchange(error, nullptr);
    slot.ready = true;
    if (batch == s.consumed) s.arrived.notify_one();
  }
  --s.running;
  s.arrived.notify_one();
}

Prefetcher::Prefetcher(std::function<Batch(int64_t)> fetch, const Options& options)
    : shared_(std::make_shared<Shared>()) {
  check(options.workers >= 1 && options.capacity >= 1,
        "prefetcher: workers and capacity must be at least 1, got ", options.workers, " and ",
        options.capacity);
  shared_->fetch = std::move(fetch);
  shared_->options = options;
  shared_->claimed = options.first;
  shared_->consumed = options.first;
  const int64_t batches = std::max<int64_t>(options.last - options.first, 1);
  shared_->options.capacity = std::min(options.capacity, batches);
  shared_->slots.resize(static_cast<size_t>(shared_->options.capacity));
  const auto count = static_cast<int>(std::min<int64_t>(options.workers, batches));
  threads_.reserve(static_cast<size_t>(count));
  try {
    for (int i = 0; i < count; ++i) {
      std::lock_guard lock(shared_->mutex);
      threads_.emplace_back([shared = shared_] { work(shared); });
      ++shared_->running;
    }
  } catch (const std::system_error& error) {
    // The workers that did start do the work; without any there is none to do it.
    check(!threads_.empty(), "prefetcher: a worker thread must start, got '", error.what(), "'");
  }
}

Prefetcher::~Prefetcher() {
  std::unique_lock lock(shared_->mutex);
  shared_->stop = true;
  shared_->room.notify_all();
  const bool ended = shared_->wait(shared_->arrived, lock, [&] { return shared_->running == 0; });
  lock.unlock();
  for (std::thread& thread : threads_) ended ? thread.join() : thread.detach();
}

Batch Prefetcher::next(const std::string& label) {
  Shared& s = *shared_;
  std::unique_lock lock(s.mutex);
  Shared::Slot& slot = s.slot(s.consumed);
  const bool came = s.wait(s.arrived, lock, [&] { return slot.ready; });
  check(came, "data_loader: ", label, " must arrive within ", s.options.timeout_s,
        " s, got nothing; a sample hangs, or timeout_s is too short");
  slot.ready = false;
  Batch batch = std::exchange(slot.batch, {});
  const std::exception_ptr error = std::exchange(slot.error, nullptr);
  ++s.consumed;
  s.room.notify_one();
  lock.unlock();
  if (error) std::rethrow_exception(error);
  return batch;
}

}  // namespace cairn::data
