// HostGroup: a process group whose calls run one after another on the host.
// Invariant: calls run in the order in which they were asked for, one at a time; one that is given
// up before its turn never runs, and breaks the group then.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "cairn/dist/process_group.h"

namespace cairn::dist {

class HostGroup : public ProcessGroup {
 public:
  // Breaks the group, as if `call` had failed in it: for who uses it as a part of something larger
  // and fails there. Null: between two calls, so that others who wait in the next one, or ask for
  // it later, hear why this rank will not come. No call may be running.
  void give_up(const Call* call, const std::exception& error) noexcept;
  // Between two calls: after one that runs.
  void abort(const std::string& why) noexcept override;

 protected:
  explicit HostGroup(GroupOptions options) : ProcessGroup(std::move(options)) {}
  ~HostGroup() override;

  // Does the call, or throws: TimeoutError past its deadline, CommError for peers and the network.
  // After that it is not called again.
  virtual void run(const Call& call) = 0;
  // After run() threw, before anybody hears of it: lets the other ranks know. Must not throw. Null:
  // the rank gave up between two calls.
  virtual void failed(const Call* call, const std::exception& error) noexcept = 0;
  // Ends the thread after the running call; those that wait fail. To be called first by the
  // destructors of classes that implement run().
  void stop() noexcept;
  // Collectives that have run.
  uint64_t executed() const { return executed_.load(); }

 private:
  struct Task;

  Work submit(Call call, bool async_op) final;
  void run_in_place(Task& task) noexcept;
  void execute(Task& task) noexcept;
  void rest(std::unique_lock<std::mutex>& lock) noexcept;
  // Of a call that was given up before it ran.
  TimeoutError no_turn(const Call& call) const;
  TimeoutError with_table(const std::string& sentence) const;
  void work_off();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Task>> queue_;
  bool busy_ = false;                   // a call runs, on the thread or in place
  std::optional<std::string> aborted_;  // why
  bool stopping_ = false;
  std::atomic<uint64_t> executed_ = 0;
  std::exception_ptr broken_;
  std::thread thread_;  // from the first asynchronous call on
};

}  // namespace cairn::dist
