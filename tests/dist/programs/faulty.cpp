// A run in which one rank fails on purpose: ranks meet by their environment and sum, step by step.
// Options: --backend NAME, or --hosts 001: a group of two levels, by each rank's host; --timeout
// MILLISECONDS, --numel N, --steps N; --rank R and --fault F: what that rank does in --step S;
// --groups N: so many subgroups before; --descriptors N: how many more each rank may open.
// Invariant: a rank writes "pid P port Q" once it is in the group, "fault at NANOSECONDS" right
// before the fault, and "heard at NANOSECONDS" when another rank's fault has reached it as an
// error; it takes no SIGTERM, so that what it has to say is heard.
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cairn/dist/auto_group.h"
#include "cairn/dist/failure_report.h"
#include "cairn/dist/init.h"
#include "cairn/dist/tcp_store.h"
#include "cairn/tensor/error.h"
#include "cairn/tensor/factory.h"

namespace {

using namespace cairn;
using Clock = std::chrono::steady_clock;

struct Options {
  std::map<std::string, std::string> given;
  std::string text(const std::string& name, const std::string& otherwise) const {
    const auto at = given.find(name);
    return at == given.end() ? otherwise : at->second;
  }
  int number(const std::string& name, int otherwise) const {
    return std::stoi(text(name, std::to_string(otherwise)));
  }
};

void say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

void say_moment(const std::string& what) {
  say(what + " at " + std::to_string(Clock::now().time_since_epoch().count()));
}

// For a call that is on its way while the fault comes.
const Tensor& large() {
  static const Tensor tensor = zeros({8 << 20}, {DType::f32});
  return tensor;
}
dist::Work large_sum(dist::ProcessGroup& group) {
  return group.all_reduce(large(), dist::ReduceOp::sum, {{.async_op = true}});
}

// Takes addresses, not pages, so that it takes no time.
void use_up_memory() {
  const rlimit limit{rlim_t{1} << 29, rlim_t{1} << 29};
  setrlimit(RLIMIT_AS, &limit);
  std::vector<std::unique_ptr<char[]>> taken;
  for (;;) taken.push_back(std::make_unique_for_overwrite<char[]>(size_t{16} << 20));
}

void crash() {
  volatile int* volatile nowhere = nullptr;
  *nowhere = 1;
}

// Returns where the rank is to leave.
void fail_by(const std::string& fault, dist::ProcessGroup& group) {
  say_moment("fault");
  if (fault == "kill" || fault == "stop") {
    const dist::Work work = large_sum(group);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    raise(fault == "kill" ? SIGKILL : SIGSTOP);
    work.wait();
  }
  if (fault == "abort") std::abort();
  if (fault == "segfault") crash();
  if (fault == "exit3") std::_Exit(3);
  if (fault == "throw") fail("data: image 7 must be whole, got half");
  if (fault == "oom") use_up_memory();
  if (fault == "shape") group.all_reduce(zeros({5}, {DType::f64}), dist::ReduceOp::max);
  if (fault == "kind") group.broadcast(zeros({3}), 1);
}

void sum_once(dist::ProcessGroup& group, int64_t numel) {
  const Tensor t = full({numel}, group.rank() + 1, {DType::f32});
  group.all_reduce(t);
  const int wanted = group.size() * (group.size() + 1) / 2;
  for (int64_t i = 0; i < numel; ++i)
    check(t.data<float>()[i] == static_cast<float>(wanted), "sum: must be ", wanted, ", got ",
          t.data<float>()[i]);
}

// As far as a rank comes with the others before it dies: the store knows it, the group does not.
void meet_and_die(const dist::ClusterEnvironment& e) {
  const auto store = dist::tcp_store({.port = e.master_port,
                                      .is_server = e.rank == 0,
                                      .world_size = e.world_size,
                                      .rank = e.rank,
                                      .run_id = e.run_id,
                                      .secret = e.secret});
  say_moment("fault");
  raise(SIGKILL);
}

// Whether `count` groups one after another leave a descriptor behind.
void make_groups(dist::ProcessGroup& group, int count) {
  std::vector<int> all;
  for (int r = 0; r < group.size(); ++r) all.push_back(r);
  for (int i = 0; i < count; ++i) {
    const auto sub = group.subgroup(all, "group " + std::to_string(i));
    sum_once(*sub, 100);
  }
}

std::shared_ptr<dist::ProcessGroup> on_hosts(const dist::ProcessGroup& group,
                                             const std::string& hosts) {
  dist::GroupOptions options = group.options();
  options.name += "/on hosts";
  return dist::group_over_hosts(std::move(options), {hosts.begin(), hosts.end()});
}

int walk(const Options& o, dist::ProcessGroup& group) {
  const std::string fault = o.text("--fault", "none");
  const bool culprit = o.number("--rank", -1) == group.rank();
  const int steps = o.number("--steps", 1 << 30), at = o.number("--step", 20);
  const int64_t numel = o.number("--numel", 3);
  say("pid " + std::to_string(getpid()) + " port " + std::getenv("MASTER_PORT"));
  make_groups(group, o.number("--groups", 0));
  const bool within_a_call = fault == "kill" || fault == "stop";
  if (within_a_call) large();
  for (int i = 0; i < steps; ++i) {
    if (i == at && fault != "none") {
      if (culprit) {
        fail_by(fault, group);
        if (fault == "leave") return 0;
      } else if (within_a_call) {
        large_sum(group).wait();
      }
    }
    sum_once(group, numel);
  }
  say("sums were right");
  return 0;
}

int run(const Options& o) {
  const dist::ClusterEnvironment e = dist::detect_environment();
  const std::string fault = o.text("--fault", "none");
  const bool culprit = o.number("--rank", -1) == e.rank;
  if (const int few = o.number("--descriptors", 0); few > 0) {
    const int open =
        ::dup(STDIN_FILENO);  // the lowest free number: whoever started it may leak some
    ::close(open);
    const auto most = static_cast<rlim_t>(open + few);
    const rlimit limit{most, most};
    setrlimit(RLIMIT_NOFILE, &limit);
  }
  if (culprit && fault == "meeting") meet_and_die(e);
  if (fault != "meeting") signal(SIGTERM, SIG_IGN);
  auto group =
      dist::init_process_group(e, {.backend = o.text("--backend", "auto"),
                                   .timeout = dist::Milliseconds(o.number("--timeout", 60000))});
  if (const std::string hosts = o.text("--hosts", ""); !hosts.empty())
    group = on_hosts(*group, hosts);
  try {
    return walk(o, *group);
  } catch (const std::exception& error) {
    say_moment("heard");
    dist::report_failure(error);
    throw;
  }
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) options.given[argv[i]] = argv[i + 1];
  try {
    return run(options);
  } catch (const std::exception& error) {
    dist::report_failure(error);
    return 1;
  }
}
