// Supervisor: waits for workers that run, passes signals on, and ends all of them when one fails.
// Invariant: one loop, one thread; every wait in it has an end, and none is for who reads what the
// workers write.
#pragma once

#include <signal.h>

#include <memory>
#include <optional>
#include <vector>

#include "cairn/dist/failure_report.h"
#include "cairn/dist/guard.h"
#include "cairn/dist/launcher.h"
#include "cairn/dist/output_queue.h"
#include "cairn/dist/worker_output.h"

namespace cairn::dist {

// SIGINT, SIGTERM, SIGHUP, but for those that the process ignores, and SIGCHLD as a descriptor; and
// no SIGPIPE. The thread's mask is restored at the end.
class SignalWatch {
 public:
  SignalWatch();
  ~SignalWatch();
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;

  int fd() const { return fd_.fd(); }
  // The next that came, or 0.
  int next();

 private:
  void restore() noexcept;

  sigset_t before_;
  struct sigaction children_before_ {};
  Socket fd_;
};

class Supervisor {
 public:
  explicit Supervisor(const LaunchOptions& options);

  // Error where it cannot run; the workers that were started before it are then killed.
  void start(int rank, const std::string& file, const std::vector<std::string>& environment,
             const std::string& error_file);
  LaunchResult run();

 private:
  using Clock = Deadline::Clock;
  struct Worker {
    int rank;
    std::string error_file;
    std::unique_ptr<Child> child;
    LastLines last;
    std::unique_ptr<WorkerOutput> out, err;
    std::optional<ExitStatus> ended = {};
    Clock::time_point ended_at = {};
    bool was_stopped = false, was_killed = false;
  };
  enum class State { running, settling, ending, killed };

  OutputQueue& queue(bool error) { return error && err_ ? *err_ : out_; }
  bool move_output(const Deadline& deadline);
  void look_for_ended();
  void take_signals();
  void advance();
  void end_all(int signal, Milliseconds grace);
  void send(int signal);
  void kill_all();
  void hand_over();
  bool handed_over() const;
  bool all_ended() const;
  bool any_failed() const;
  int order(const Worker& worker, WorkerFailure& failure) const;
  std::vector<EarlyEnd> left_early(const WorkerFailure& first) const;
  void tell_lost_output(LaunchResult& result) const;
  LaunchResult result() const;

  const LaunchOptions& options_;
  OutputQueue out_;
  std::optional<OutputQueue> err_;  // absent: goes where out_ goes
  SignalWatch signals_;
  Guard guard_;
  std::vector<std::unique_ptr<Worker>> workers_;
  State state_ = State::running;
  Deadline next_{Deadline::Clock::time_point::max()};  // when the state changes by itself
  Clock::time_point told_ = Clock::time_point::max();  // when the others were told to end
  int interrupted_by_ = 0;
  std::string output_error_;
};

}  // namespace cairn::dist
