// A program as a user writes it, for tests of launchers: makes a group from its environment and
// sums. Options: --backend NAME, --rounds N, --timeout MILLISECONDS, --after MILLISECONDS, and what
// goes wrong after that time: --kill RANK, --stop RANK, --throw RANK; or before the ranks meet:
// --early RANK.
// Invariant: it writes one line, "rank 1 of 4 by slurm: 10", when the sums were right.
#include <signal.h>

#include <chrono>
#include <cstdio>
#include <map>
#include <string>

#include "cairn/dist/failure_report.h"
#include "cairn/dist/init.h"
#include "cairn/tensor/error.h"
#include "cairn/tensor/factory.h"

namespace {

using namespace cairn;
using Clock = std::chrono::steady_clock;

struct Options {
  std::map<std::string, std::string> given;
  int number(const std::string& name, int otherwise) const {
    const auto at = given.find(name);
    return at == given.end() ? otherwise : std::stoi(at->second);
  }
};

void sum_once(dist::ProcessGroup& group, int64_t numel) {
  const Tensor t = full({numel}, group.rank() + 1, {DType::f32});
  group.all_reduce(t).wait();
  const int wanted = group.size() * (group.size() + 1) / 2;
  for (const int64_t i : {int64_t{0}, numel - 1})
    check(t.data<float>()[i] == static_cast<float>(wanted), "sum: must be ", wanted, ", got ",
          t.data<float>()[i]);
}

int run(const Options& o) {
  const dist::ClusterEnvironment e = dist::detect_environment();
  if (o.number("--early", -1) == e.rank) return 3;
  dist::InitOptions init;
  if (o.given.count("--backend") != 0) init.backend = o.given.at("--backend");
  init.timeout = dist::Milliseconds(o.number("--timeout", 60000));
  const auto group = dist::init_process_group(e, init);
  const bool faulty =
      o.given.count("--kill") + o.given.count("--stop") + o.given.count("--throw") != 0;
  const auto end = Clock::now() + std::chrono::milliseconds(o.number("--after", 0));
  const int rounds = faulty ? 1 << 30 : o.number("--rounds", 10);
  for (int i = 0; i < rounds; ++i) {
    sum_once(*group, i % 2 == 0 ? 3 : 1'000'000);
    if (Clock::now() < end) continue;
    if (o.number("--kill", -1) == e.rank) raise(SIGKILL);
    if (o.number("--stop", -1) == e.rank) raise(SIGSTOP);
    check(o.number("--throw", -1) != e.rank, "data: image 7 must be whole");
  }
  group->barrier().wait();
  std::printf("rank %d of %d by %s: %d\n", e.rank, e.world_size, e.name.c_str(),
              e.world_size * (e.world_size + 1) / 2);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) options.given[argv[i]] = argv[i + 1];
  try {
    return run(options);
  } catch (const std::exception& error) {
    dist::report_failure(error);
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
