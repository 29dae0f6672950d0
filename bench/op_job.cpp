// What one small op costs: the add of two 8x8 tensors.
// Invariant: the bodies of the loops are those of bench/peer_torch.py and
// bench/libtorch/op_job.cpp.
#include <cairn/cairn.h>

#include "bench/jobs.h"

namespace cairn::bench {
namespace {

constexpr int kOps = 1000;   // of one measurement of forward and record
constexpr int kChain = 100;  // nodes of one backward
constexpr int kChains = 20;  // backwards of one measurement

class OpJob final : public Job {
 public:
  explicit OpJob(std::string kind) : kind_(std::move(kind)) {
    check(kind_ == "forward" || kind_ == "record" || kind_ == "backward",
          "setup: op must be one of forward, record, backward, got ", kind_);
    if (kind_ != "forward") set_requires_grad(a_);
  }

  Outputs outputs() override {
    if (kind_ == "backward") {
      backward_ns();
      return {{sum(grad(a_)).item()}};
    }
    return {{sum(add(a_, b_)).item()}};
  }
  std::vector<double> run(int n) override {
    std::vector<double> times;
    for (int i = 0; i < n; ++i) times.push_back(kind_ == "backward" ? backward_ns() : add_ns());
    return times;
  }

 private:
  double add_ns() const {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kOps; ++i) Tensor y = add(a_, b_);
    return seconds_since(start) * 1e9 / kOps;
  }

  // Of one node: the chain's time, the leaf at its end included, over its length.
  double backward_ns() const {
    double seconds = 0;
    for (int i = 0; i < kChains; ++i) {
      Tensor y = a_;
      for (int k = 0; k < kChain; ++k) y = add(y, b_);
      zero_grad(a_);
      const auto start = std::chrono::steady_clock::now();
      backward(y, ones_);
      seconds += seconds_since(start);
    }
    return seconds * 1e9 / (kChains * kChain);
  }

  std::string kind_;
  Tensor a_ = full({8, 8}, 1.25), b_ = full({8, 8}, 0.5), ones_ = ones({8, 8});
};

}  // namespace

std::unique_ptr<Job> op_job(const json& request) {
  return std::make_unique<OpJob>(request.at("op").get<std::string>());
}

}  // namespace cairn::bench
