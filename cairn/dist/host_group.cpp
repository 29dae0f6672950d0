// HostGroup: a queue and one thread; a call that is waited for at once runs on the caller's.
#include "cairn/dist/host_group.h"

#include <utility>

namespace cairn::dist {
namespace {

// Where the call before it fails at the same moment, that error tells more: it takes a while to ask
// the other ranks.
constexpr Milliseconds kExplained{1000};

}  // namespace

struct HostGroup::Task : WorkState {
  enum class State { queued, running, given_up, done };

  Task(HostGroup& of, Call what, uint64_t of_ticket)
      : group(of), call(std::move(what)), ticket(of_ticket) {}

  bool is_completed() override {
    const std::lock_guard lock(mutex);
    return error || state == State::done;
  }
  void wait() override {
    if (in_place) {  // then no other thread has this task
      in_place = false;
      group.run_in_place(*this);
    }
    std::unique_lock lock(mutex);
    if (state != State::done) group.check_process();
    // Others' calls may last longer than this one may wait for its turn.
    if (!changed.wait_until(lock, call.deadline.at() + kExplained,
                            [&] { return state != State::queued; })) {
      state = State::given_up;
      error = std::make_exception_ptr(group.no_turn(call));
    }
    // A call that runs has a deadline itself.
    changed.wait(lock, [&] { return state != State::running; });
    if (error) std::rethrow_exception(error);
  }
  // Whether it may: it has not been given up.
  bool start() {
    const std::lock_guard lock(mutex);
    if (state == State::given_up) return false;
    state = State::running;
    return true;
  }
  void finish(std::exception_ptr with) {
    {
      const std::lock_guard lock(mutex);
      if (!error) error = std::move(with);
      state = State::done;
      call.input = call.output = {};
    }
    changed.notify_all();
  }

  HostGroup& group;  // alive while the task is not done
  Call call;
  const uint64_t ticket;
  bool in_place = false;  // wait() runs it
  std::mutex mutex;
  std::condition_variable changed;
  State state = State::queued;
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
    busy_ = task->in_place = true;
    return Work(std::move(task));
  }
  queue_.push_back(task);
  if (!thread_.joinable()) thread_ = std::thread([this] { work_off(); });
  changed_.notify_all();
  return Work(std::move(task));
}

void HostGroup::run_in_place(Task& task) noexcept {
  execute(task);
  std::unique_lock lock(mutex_);
  rest(lock);
}

// What busy_ was set for is done.
void HostGroup::rest(std::unique_lock<std::mutex>& lock) noexcept {
  if (aborted_ && !broken_) {
    lock.unlock();
    give_up(nullptr, CommError(*aborted_));
    lock.lock();
  }
  busy_ = false;
  changed_.notify_all();
}

void HostGroup::abort(const std::string& why) noexcept {
  if (size() == 1 || !in_its_process()) return;
  std::unique_lock lock(mutex_);
  if (aborted_) return;
  aborted_ = why;
  if (std::exchange(busy_, true)) return;
  rest(lock);
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
    rest(lock);
  }
}

void HostGroup::give_up(const Call* call, const std::exception& error) noexcept {
  if (broken_) return;
  failed(call, error);
  broken_ = std::make_exception_ptr(CommError(error.what()));
  note_failure();
}

TimeoutError HostGroup::no_turn(const Call& call) const {
  return with_table(cat(options().describe(call), ": rank ", options().name_of(rank()), " waited ",
                        call.timeout.count(),
                        " ms for its turn, got none: a call before it still runs"));
}

TimeoutError HostGroup::with_table(const std::string& sentence) const {
  return TimeoutError(cat(sentence, "\nThe last collectives of rank ", options().name_of(rank()),
                          " in the group '", name(), "':\n", recorder_.table()));
}

// Only the one that made busy_ true comes here, so broken_ needs no lock.
void HostGroup::execute(Task& task) noexcept {
  if (broken_) {
    recorder_.ended(task.ticket, false);
    task.finish(broken_);
    return;
  }
  try {
    if (!task.start()) std::rethrow_exception(task.error);
    recorder_.started(task.ticket);
    run(task.call);
    recorder_.ended(task.ticket, true);
    if (is_collective(task.call.is.kind)) ++executed_;
  } catch (const std::exception& error) {
    recorder_.ended(task.ticket, false);
    failed(&task.call, error);
    broken_ = std::current_exception();
    if (dynamic_cast<const TimeoutError*>(&error) != nullptr && !task.error)
      broken_ = std::make_exception_ptr(with_table(error.what()));
    note_failure();
  }
  task.finish(broken_);
}

}  // namespace cairn::dist
