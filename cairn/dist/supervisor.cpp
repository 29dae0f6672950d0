// Supervisor.
#include "cairn/dist/supervisor.h"

#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <utility>

namespace cairn::dist {
namespace {

// How long the first failure may wait for one that explains it better: a rank that only lost its
// peer can end before the peer does.
constexpr Milliseconds kSettle{300};
// SIGCHLD may have gone to another thread.
constexpr Milliseconds kLook{100};
// From one stream of a worker, before the next has its turn.
constexpr size_t kReadAtOnce = 64 << 10;
// Beyond what waits for its reader, so that workers that are told to end can say their last words.
constexpr size_t kLastWords = 1 << 20;

sigset_t only(int signal) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  return set;
}

}  // namespace

SignalWatch::SignalWatch() {
  sigset_t watched;
  sigemptyset(&watched);
  // What this process was told to ignore, as by nohup, stays ignored: blocked, it would be queued.
  for (const int signal : {SIGINT, SIGTERM, SIGHUP})
    if (!is_ignored(signal)) sigaddset(&watched, signal);
  // Where the end of children is ignored, nobody hears how they ended.
  sigaddset(&watched, SIGCHLD);
  struct sigaction heard {};
  heard.sa_handler = SIG_DFL;
  sigaction(SIGCHLD, &heard, &children_before_);
  pthread_sigmask(SIG_BLOCK, &watched, &before_);
  const sigset_t pipe = only(SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe, nullptr);
  fd_ = Socket(signalfd(-1, &watched, SFD_NONBLOCK | SFD_CLOEXEC));
  if (!fd_) {
    const int reason = errno;
    restore();
    fail("launch: signals must have a descriptor, got: ", std::strerror(reason));
  }
}

// A Ctrl-C that was not read is still meant for this process and is delivered now.
SignalWatch::~SignalWatch() { restore(); }

void SignalWatch::restore() noexcept {
  // That of our own writes is nobody's.
  const sigset_t pipe = only(SIGPIPE);
  const timespec now{};
  while (sigismember(&before_, SIGPIPE) == 0 && sigtimedwait(&pipe, nullptr, &now) > 0) {
  }
  sigaction(SIGCHLD, &children_before_, nullptr);
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

int SignalWatch::next() {
  signalfd_siginfo info{};
  return read(fd_.fd(), &info, sizeof info) == sizeof info ? static_cast<int>(info.ssi_signo) : 0;
}

Supervisor::Supervisor(const LaunchOptions& options) : options_(options), out_(STDOUT_FILENO) {
  // Through one queue, so that no line comes in the midst of another.
  if (!same_output(STDOUT_FILENO, STDERR_FILENO)) err_.emplace(STDERR_FILENO);
}

void Supervisor::start(int rank, const std::string& file,
                       const std::vector<std::string>& environment, const std::string& error_file) {
  auto worker = std::make_unique<Worker>();
  worker->rank = rank;
  worker->error_file = error_file;
  worker->child = std::make_unique<Child>(file, options_.program, environment);
  guard_.watch(worker->child->pid());
  const auto taker = [this, w = worker.get()](bool error) {
    return [this, w, error](std::string_view line) {
      w->last.add(line);
      if (options_.show) queue(error).add(options_.show({w->rank, error, line}));
    };
  };
  worker->out = std::make_unique<WorkerOutput>(std::move(worker->child->out), taker(false));
  worker->err = std::make_unique<WorkerOutput>(std::move(worker->child->err), taker(true));
  workers_.push_back(std::move(worker));
}

LaunchResult Supervisor::run() {
  while (!all_ended()) {
    move_output(next_);
    take_signals();
    look_for_ended();
    advance();
  }
  hand_over();
  return result();
}

bool Supervisor::all_ended() const {
  return std::all_of(workers_.begin(), workers_.end(),
                     [](const auto& worker) { return worker->ended.has_value(); });
}

bool Supervisor::any_failed() const {
  return std::any_of(workers_.begin(), workers_.end(),
                     [](const auto& worker) { return worker->ended && !worker->ended->well(); });
}

// Returns when something is there, and at the latest at the deadline. Whether anything that was
// written went out.
bool Supervisor::move_output(const Deadline& deadline) {
  std::vector<PollEntry> entries = {{signals_.fd(), true, false}};
  std::vector<std::pair<WorkerOutput*, OutputQueue*>> reading;
  const bool ends = state_ == State::ending || state_ == State::killed;
  const size_t more = ends ? kLastWords : 0;
  for (const auto& worker : workers_)
    for (const bool error : {false, true}) {
      WorkerOutput* const from = (error ? worker->err : worker->out).get();
      if (from->fd() < 0 || queue(error).full(more)) continue;
      reading.emplace_back(from, &queue(error));
      entries.push_back({from->fd(), true, false});
    }
  for (const bool error : {false, true})
    if (!queue(error).empty()) entries.push_back({queue(error).fd(), false, true});
  poll_until(entries, deadline.or_in(kLook));
  for (size_t i = 0; i < reading.size(); ++i)
    if (const auto [from, to] = reading[i]; entries[1 + i].ready && !to->full(more))
      from->read_some(kReadAtOnce);
  const bool out = out_.write_some();
  return (err_ && err_->write_some()) || out;
}

bool Supervisor::handed_over() const {
  return out_.empty() && (!err_ || err_->empty()) &&
         std::all_of(workers_.begin(), workers_.end(), [](const auto& worker) {
           return worker->out->fd() < 0 && worker->err->fd() < 0;
         });
}

// The workers have ended; what they wrote is on its way to its reader.
void Supervisor::hand_over() {
  const Milliseconds grace = interrupted_by_ != 0 ? options_.failure_grace : options_.output_grace;
  for (Deadline deadline(grace); !handed_over();) {
    if (move_output(deadline)) deadline = Deadline(grace);
    int signal = signals_.next();
    while (signal == SIGCHLD) signal = signals_.next();
    if (signal == 0 && !deadline.expired()) continue;
    if (signal == 0)
      output_error_ = cat("what workers write must be read, got nobody who took any within ",
                          in_words(grace), "; the last lines are lost");
    else if (interrupted_by_ == 0 && !any_failed())
      interrupted_by_ = signal;
    out_.give_up();
    if (err_) err_->give_up();
  }
}

void Supervisor::look_for_ended() {
  const Clock::time_point now = Clock::now();
  for (const auto& worker : workers_) {
    if (worker->ended) continue;
    worker->ended = worker->child->poll();
    if (!worker->ended) continue;
    worker->ended_at = now;
    guard_.forget(worker->child->pid());
    worker->out->end();
    worker->err->end();
  }
}

void Supervisor::take_signals() {
  while (const int signal = signals_.next()) {
    if (signal == SIGCHLD) continue;
    if (state_ == State::running || state_ == State::settling) {
      interrupted_by_ = signal;
      end_all(signal, options_.interrupt_grace);
    } else {  // asked for twice, or while it ends anyway
      kill_all();
    }
  }
}

void Supervisor::advance() {
  if (state_ == State::running || state_ == State::settling) {
    if (!any_failed()) return;
    // A cause needs no better explanation.
    const bool known = std::any_of(workers_.begin(), workers_.end(), [&](const auto& worker) {
      WorkerFailure failure;
      return worker->ended && !worker->ended->well() && order(*worker, failure) == 0;
    });
    if (!known && state_ == State::running) {
      state_ = State::settling;
      next_ = Deadline(kSettle);
    } else if (known || next_.expired()) {
      end_all(SIGTERM, options_.failure_grace);
    }
  } else if (state_ == State::ending && next_.expired()) {
    kill_all();
  }
}

void Supervisor::end_all(int signal, Milliseconds grace) {
  for (const auto& worker : workers_) worker->was_stopped = worker->child->is_stopped();
  send(signal);
  send(SIGCONT);  // one that is stopped could not hear it
  state_ = State::ending;
  told_ = std::min(told_, Clock::now());
  next_ = Deadline(grace);
}

void Supervisor::send(int signal) {
  for (const auto& worker : workers_) worker->child->send(signal);
}

void Supervisor::kill_all() {
  for (const auto& worker : workers_) worker->was_killed = !worker->ended;
  send(SIGKILL);
  state_ = State::killed;
  next_ = Deadline(Clock::time_point::max());
}

// How well a failure explains the run's: 0 is a cause, 1 may be one, 2 a consequence.
int Supervisor::order(const Worker& worker, WorkerFailure& failure) const {
  const auto report = read_failure_report(worker.error_file);
  if (report) failure.error = report->text;
  const bool before = report ? report->at <= told_ : worker.ended_at <= told_;
  failure.consequence = !before || (report && report->consequence);
  if (failure.consequence) return 2;
  return report || worker.ended->signal != 0 ? 0 : 1;
}

std::vector<EarlyEnd> Supervisor::left_early(const WorkerFailure& first) const {
  const auto failed = std::find_if(workers_.begin(), workers_.end(),
                                   [&](const auto& w) { return w->rank == first.rank; });
  std::vector<EarlyEnd> out;
  for (const auto& worker : workers_)
    if (worker->ended->well() && worker->ended_at <= std::min(told_, (*failed)->ended_at)) {
      const std::chrono::duration<double> before = (*failed)->ended_at - worker->ended_at;
      out.push_back({worker->rank, before.count()});
    }
  return out;
}

// A reader may go when it has seen enough, but a file must take everything.
void Supervisor::tell_lost_output(LaunchResult& result) const {
  result.output_error = output_error_;
  for (const bool error : {false, true}) {
    const OutputQueue* const queue = !error ? &out_ : err_ ? &*err_ : nullptr;
    if (queue == nullptr || queue->error() == 0) continue;
    const bool gone = queue->error() == EPIPE;
    if (!gone && result.exit_status == 0) result.exit_status = 1;
    if (!result.output_error.empty()) result.output_error += '\n';
    result.output_error +=
        cat("standard ", error ? "error" : "output", " must take what workers write, got: ",
            gone ? "its reader has gone" : std::strerror(queue->error()), "; the rest is lost");
  }
}

LaunchResult Supervisor::result() const {
  struct Found {
    int order;
    Clock::time_point at;
    WorkerFailure failure;
  };
  std::vector<Found> found;
  for (const auto& worker : workers_) {
    if (worker->ended->well()) continue;
    WorkerFailure failure;
    failure.rank = worker->rank;
    failure.status = *worker->ended;
    failure.was_told = worker->ended_at > told_;
    failure.was_stopped = worker->was_stopped;
    failure.was_killed = worker->was_killed;
    failure.last_lines.assign(worker->last.lines().begin(), worker->last.lines().end());
    const int rank_order = order(*worker, failure);
    found.push_back({rank_order, worker->ended_at, std::move(failure)});
  }
  std::stable_sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
    return a.order != b.order ? a.order < b.order : a.at < b.at;
  });
  LaunchResult result;
  result.interrupted_by = interrupted_by_;
  for (Found& each : found) result.failures.push_back(std::move(each.failure));
  if (!result.failures.empty()) result.left_early = left_early(result.failures.front());
  if (interrupted_by_ != 0)
    result.exit_status = 128 + interrupted_by_;
  else if (!result.failures.empty())
    result.exit_status =
        result.failures.front().was_told ? 1 : result.failures.front().status.shell();
  tell_lost_output(result);
  return result;
}

}  // namespace cairn::dist
