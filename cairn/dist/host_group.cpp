// HostGroup: a queue and one thread; a call that is waited for at once runs on the caller's.
#include "cairn/dist/host_group.h"

#include <utility>

namespace cairn::dist {

struct HostGroup::Task : WorkState {
  Task(HostGroup& of, Call what, uint64_t of_ticket)
      : group(of), call(std::move(what)), ticket(of_ticket) {}

  bool is_completed() override {
    const std::lock_guard lock(mutex);
    return done;
  }
  void wait() override {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return done; });  // the call itself has a deadline
    if (error) std::rethrow_exception(error);
  }
  void finish(std::exception_ptr with) {
    {
      const std::lock_guard lock(mutex);
      error = std::move(with);
      done = true;
      call.input = call.output = {};
    }
    changed.notify_all();
  }

  HostGroup& group;
  Call call;
  const uint64_t ticket;
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  std::exception_ptr error;
};

HostGroup::~HostGroup() { stop(); }

void HostGroup::stop() noexcept {
  std::deque<std::shared_ptr<Task>> left;
  {
    std::unique_lock lock(mutex_);
    stopping_ = true;
    left.swap(queue_);
    changed_.notify_all();
    changed_.wait(lock, [&] { return !busy_; });
  }
  if (thread_.joinable()) thread_.join();
  for (const auto& task : left)
    task->finish(std::make_exception_ptr(
        CommError(cat(describe(task->call), ": the group '", name(), "' was closed before it"))));
}

Work HostGroup::submit(Call call, bool async_op) {
  const uint64_t ticket = recorder_.asked(call);
  auto task = std::make_shared<Task>(*this, std::move(call), ticket);
  std::unique_lock lock(mutex_);
  if (!async_op && !busy_ && queue_.empty()) {
    busy_ = true;
    lock.unlock();
    execute(*task);
    lock.lock();
    busy_ = false;
    changed_.notify_all();
    return Work(std::move(task));
  }
  queue_.push_back(task);
  if (!thread_.joinable()) thread_ = std::thread([this] { work_off(); });
  changed_.notify_all();
  return Work(std::move(task));
}

void HostGroup::work_off() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stopping_ || (!busy_ && !queue_.empty()); });
    if (stopping_) return;
    const std::shared_ptr<Task> task = std::move(queue_.front());
    queue_.pop_front();
    busy_ = true;
    lock.unlock();
    execute(*task);
    lock.lock();
    busy_ = false;
    changed_.notify_all();
  }
}

void HostGroup::give_up(const Call& call, const std::exception& error) noexcept {
  if (broken_) return;
  failed(call, error);
  broken_ = std::make_exception_ptr(CommError(error.what()));
}

// Only the one that made busy_ true comes here, so broken_ needs no lock.
void HostGroup::execute(Task& task) noexcept {
  if (broken_) {
    recorder_.ended(task.ticket, false);
    task.finish(broken_);
    return;
  }
  recorder_.started(task.ticket);
  try {
    run(task.call);
    recorder_.ended(task.ticket, true);
    if (is_collective(task.call.is.kind)) ++executed_;
  } catch (const std::exception& error) {
    recorder_.ended(task.ticket, false);
    failed(task.call, error);
    broken_ = std::current_exception();
    if (dynamic_cast<const TimeoutError*>(&error) != nullptr)
      broken_ = std::make_exception_ptr(
          TimeoutError(cat(error.what(), "\nThe last collectives of rank ", rank(),
                           " in the group '", name(), "':\n", recorder_.table())));
  }
  task.finish(broken_);
}

}  // namespace cairn::dist
