// A program as a user writes it, for tests over several hosts: makes a group from its environment
// and sums tensors. Options: --backend NAME, --timeout MILLISECONDS, --bind ADDRESS; --numel N: one
// sum of so many elements instead of several sizes; --seconds S: then sums for so long, each with
// the time-out --each MILLISECONDS.
// Invariant: what it writes was checked. "numel 1000 hash 5d3f rank 1 of 4 by ring", "slowest 5.3 s
// of 812 sums", "failed after 3.51 s: TimeoutError: …", where the time is that of the call.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "cairn/dist/failure_report.h"
#include "cairn/dist/init.h"
#include "cairn/tensor/error.h"
#include "cairn/tensor/factory.h"

namespace {

using namespace cairn;
using Clock = std::chrono::steady_clock;
using Options = std::map<std::string, std::string>;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int number(const Options& options, const char* name, int otherwise) {
  const auto at = options.find(name);
  return at == options.end() ? otherwise : std::stoi(at->second);
}

// Of -1 to 1, with as many digits as a float has, so that sums round.
float value(int rank, int64_t i) {
  const auto mixed = static_cast<uint32_t>(i * 7 + rank + 1) * 2654435761u;
  return static_cast<float>(static_cast<double>(mixed >> 3) / (1 << 28) - 1);
}

void sum(dist::ProcessGroup& group, int64_t numel) {
  const Tensor t = empty({numel}, {DType::f32});
  auto* data = t.data<float>();
  for (int64_t i = 0; i < numel; ++i) data[i] = value(group.rank(), i);
  group.all_reduce(t).wait();
  uint64_t hash = 14695981039346656037u;
  for (int64_t i = 0; i < numel; ++i) {
    double wanted = 0;
    for (int r = 0; r < group.size(); ++r) wanted += value(r, i);
    check(std::abs(data[i] - wanted) < 1e-6 * group.size(), "sum: element ", i, " of ", numel,
          " must be ", wanted, ", got ", data[i]);
    uint32_t bits = 0;
    std::memcpy(&bits, data + i, sizeof bits);
    hash = (hash ^ bits) * 1099511628211u;
  }
  std::printf("numel %ld hash %016lx rank %d of %d by %s\n", static_cast<long>(numel),
              static_cast<unsigned long>(hash), group.rank(), group.size(),
              std::string(group.backend()).c_str());
  std::fflush(stdout);
}

// Small and large sums in turn. Rank 0's element says when it is enough.
void sum_for(dist::ProcessGroup& group, double seconds, const dist::ReduceOptions& options) {
  const auto start = Clock::now();
  double slowest = 0;
  for (int sums = 1;; ++sums) {
    const Tensor t = full({sums % 2 == 0 ? 3 : 100'000}, 1, {DType::f32});
    if (group.rank() == 0 && seconds_since(start) > seconds) t.data<float>()[0] = 1000;
    const auto call = Clock::now();
    try {
      group.all_reduce(t, dist::ReduceOp::sum, options).wait();
    } catch (const CommError& error) {
      const bool late = dynamic_cast<const dist::TimeoutError*>(&error) != nullptr;
      const std::string text = error.what();
      std::printf("failed after %.2f s: %s: %s\n", seconds_since(call),
                  late ? "TimeoutError" : "CommError", text.substr(0, text.find('\n')).c_str());
      std::fflush(stdout);
      throw;
    }
    slowest = std::max(slowest, seconds_since(call));
    const float last = t.data<float>()[t.numel() - 1];
    check(last == static_cast<float>(group.size()), "sum: must be ", group.size(), ", got ", last);
    if (t.data<float>()[0] < 1000) continue;
    std::printf("slowest %.2f s of %d sums\n", slowest, sums);
    return;
  }
}

void run(const Options& options) {
  const dist::ClusterEnvironment e = dist::detect_environment();
  dist::InitOptions init;
  init.timeout = dist::Milliseconds(number(options, "--timeout", 20000));
  if (options.count("--backend") != 0) init.backend = options.at("--backend");
  if (options.count("--bind") != 0) init.bind = options.at("--bind");
  const auto group = dist::init_process_group(e, init);
  std::vector<int64_t> sizes = {0, 1, 3, 1000, 100'003};
  if (options.count("--numel") != 0) sizes = {number(options, "--numel", 0)};
  for (const int64_t numel : sizes) sum(*group, numel);
  dist::ReduceOptions each;
  if (options.count("--each") != 0) each.timeout = dist::Milliseconds(number(options, "--each", 0));
  if (options.count("--seconds") != 0) sum_for(*group, number(options, "--seconds", 0), each);
  group->barrier().wait();
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) options[argv[i]] = argv[i + 1];
  try {
    run(options);
    return 0;
  } catch (const std::exception& error) {
    dist::report_failure(error);
    return 1;
  }
}
