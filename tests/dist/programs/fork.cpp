// A run in which a rank forks while it is in a group: its child asks for a call and lets go of the
// group. Options: --backend NAME, or --hosts 001: a group of two levels, by each rank's host;
// --rank R: who forks.
// Invariant: the rank that forks writes "child: ERROR" for what the child got from the group and
// from its store, and "child ended with STATUS after N ms"; every rank that got right sums then
// writes so.
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <map>
#include <string>

#include "cairn/dist/auto_group.h"
#include "cairn/dist/failure_report.h"
#include "cairn/dist/init.h"
#include "cairn/tensor/error.h"
#include "cairn/tensor/factory.h"

namespace {

using namespace cairn;
using Clock = std::chrono::steady_clock;
using Group = std::shared_ptr<dist::ProcessGroup>;

void sum_once(dist::ProcessGroup& group, bool async_op) {
  const Tensor t = full({3}, group.rank() + 1, {DType::f32});
  group.all_reduce(t, dist::ReduceOp::sum, {{.async_op = async_op}}).wait();
  const int wanted = group.size() * (group.size() + 1) / 2;
  check(t.data<float>()[2] == static_cast<float>(wanted), "sum: must be ", wanted, ", got ",
        t.data<float>()[2]);
}

template <class Action>
void say_error(const Action& action) {
  try {
    action();
    std::printf("child: no error\n");
  } catch (const std::exception& error) {
    std::printf("child: %s\n", error.what());
  }
}

// Ends as a program does.
[[noreturn]] void be_child(Group& group) {
  say_error([&] { group->all_reduce(full({3}, 100.0)); });
  say_error([&] { group->options().store->set("word", "of the child"); });
  say_error([&] { group->subgroup({group->rank()}, "alone"); });
  group->abort("of the child");
  group.reset();
  std::exit(0);
}

void run(const std::map<std::string, std::string>& given) {
  const auto option = [&](const char* name) {
    return given.count(name) != 0 ? given.at(name) : std::string();
  };
  const dist::ClusterEnvironment e = dist::detect_environment();
  Group group = dist::init_process_group(
      e, {.backend = option("--backend"), .timeout = std::chrono::seconds(20)});
  if (const std::string hosts = option("--hosts"); !hosts.empty()) {
    dist::GroupOptions options = group->options();
    options.name += "/on hosts";
    group = dist::group_over_hosts(std::move(options), {hosts.begin(), hosts.end()});
  }
  sum_once(*group, true);  // from here on it has a thread
  if (option("--rank") == std::to_string(e.rank)) {
    std::fflush(nullptr);
    const auto start = Clock::now();
    const pid_t child = fork();
    if (child == 0) be_child(group);
    int status = -1;
    waitpid(child, &status, 0);
    const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start);
    std::printf("child %d of %d ended with %d after %d ms\n", child, getpid(), status,
                static_cast<int>(took.count()));
  }
  for (int i = 0; i < 3; ++i) sum_once(*group, i == 1);
  std::printf("sums were right\n");
}

}  // namespace

#if defined(__SANITIZE_ADDRESS__)
// What the parent's threads held looks lost in a child that has none of them.
extern "C" const char* __lsan_default_options() { return "detect_leaks=0"; }
#endif

int main(int argc, char** argv) {
  std::map<std::string, std::string> given;
  for (int i = 1; i + 1 < argc; i += 2) given[argv[i]] = argv[i + 1];
  try {
    run(given);
    return 0;
  } catch (const std::exception& error) {
    dist::report_failure(error);
    return 1;
  }
}
