// The LibTorch side of `./run bench ops`: what one small op costs from C++. Compiled by the
// benchmark itself (bench/sides.py) against the PyTorch of its environment, never by CMake.
// Invariant: the bodies of the loops are those of bench/op_job.cpp, and so are the answers to
// setup, check and run.
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "../serve.h"

namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr int kOps = 1000, kChain = 100, kChains = 20;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct OpJob {
  explicit OpJob(const std::string& kind) : kind(kind) { a.set_requires_grad(kind != "forward"); }

  std::vector<std::vector<double>> check() {
    if (kind == "backward") {
      backward_ns();
      return {{a.grad().sum().item<double>()}};
    }
    return {{at::add(a, b).sum().item<double>()}};
  }

  double add_ns() {
    const auto start = Clock::now();
    for (int i = 0; i < kOps; ++i) at::Tensor y = at::add(a, b);
    return seconds_since(start) * 1e9 / kOps;
  }

  double backward_ns() {
    double seconds = 0;
    for (int i = 0; i < kChains; ++i) {
      at::Tensor y = a;
      for (int k = 0; k < kChain; ++k) y = at::add(y, b);
      a.mutable_grad().reset();
      const auto start = Clock::now();
      y.backward(ones);
      seconds += seconds_since(start);
    }
    return seconds * 1e9 / (kChains * kChain);
  }

  std::string kind;
  at::Tensor a = torch::full({8, 8}, 1.25), b = torch::full({8, 8}, 0.5),
             ones = torch::ones({8, 8});
};

json answer(std::unique_ptr<OpJob>& job, const json& request) {
  const std::string command = request.at("cmd");
  if (command == "setup") {
    at::set_num_threads(request.at("threads"));
    job = std::make_unique<OpJob>(request.at("op").get<std::string>());
    return json::object();
  }
  if (!job) throw std::runtime_error(command + ": setup must come first");
  if (command == "check") return {{"outputs", job->check()}};
  if (command != "run") throw std::runtime_error("cmd must be setup, check or run, got " + command);
  std::vector<double> values;
  for (int i = 0; i < request.at("n").get<int>(); ++i)
    values.push_back(job->kind == "backward" ? job->backward_ns() : job->add_ns());
  return {{"values", values}};
}

}  // namespace

int main() {
  std::unique_ptr<OpJob> job;
  cairn::bench::serve([&](const json& request) { return answer(job, request); });
}
