// One rank of a group: all-reduce alone, and training steps through DistributedDataParallel.
// Invariant: a measurement whose result is wrong is an error, not a figure; the ranks' tensors and
// losses are those of bench/peer_collectives.py.
#include <cairn/cairn.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "bench/batches.h"
#include "bench/jobs.h"
#include "cairn/dist/ddp.h"
#include "cairn/dist/init.h"
#include "cairn/tensor/raw.h"

namespace cairn::bench {
namespace {

std::shared_ptr<dist::ProcessGroup> join_group(const json& request) {
  return dist::init_process_group(dist::detect_environment(),
                                  {.backend = request.value("backend", "auto")});
}

// What a rank gives: whole numbers, so that their sum over few ranks is exact in any order.
float given(int64_t i, int rank) { return static_cast<float>((i + 37 * rank) % 1009 - 504); }

// `calls` in a row sum what the one before has left. Group sizes are powers of two, so that all
// sums stay exact.
class AllReduce final : public Job {
 public:
  explicit AllReduce(const json& request)
      : group_(join_group(request)),
        calls_(request.at("calls")),
        tensor_(group_->shared_tensor(request.at("bytes").get<int64_t>() / 4, DType::f32)),
        own_(static_cast<size_t>(tensor_.numel())),
        wanted_(own_.size(), 0) {
    growth_ = std::pow(group_->size(), calls_ - 1);
    check(growth_ < 0x1p100, "setup: calls must keep sums in f32's range, got ", calls_);
    for (size_t i = 0; i < own_.size(); ++i) {
      own_[i] = given(static_cast<int64_t>(i), group_->rank());
      for (int r = 0; r < group_->size(); ++r) wanted_[i] += given(static_cast<int64_t>(i), r);
      wanted_[i] *= static_cast<float>(growth_);
    }
  }

  Outputs outputs() override {
    measure();
    double sum = 0;
    for (int64_t i = 0; i < tensor_.numel(); ++i)
      sum += static_cast<double>(i % 7 + 1) * tensor_.data<float>()[i];
    return {{sum / growth_}};
  }
  std::vector<double> run(int n) override {
    std::vector<double> times;
    for (int i = 0; i < n; ++i) times.push_back(measure());
    return times;
  }

 private:
  double measure() {
    float* const data = tensor_.data<float>();
    std::copy(own_.begin(), own_.end(), data);
    group_->barrier();
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < calls_; ++i) group_->all_reduce(tensor_);
    const double seconds = seconds_since(start);
    for (size_t i = 0; i < wanted_.size(); ++i)
      check(data[i] == wanted_[i], "run: element ", i, " of the sum must be ", wanted_[i], ", got ",
            data[i]);
    return seconds * 1e3 / calls_;
  }

  std::shared_ptr<dist::ProcessGroup> group_;
  int calls_;
  Tensor tensor_;
  std::vector<float> own_, wanted_;
  double growth_ = 1;
};

class Ddp final : public Job {
 public:
  explicit Ddp(const json& request) : checked_(request.value("checked", size_t{100})) {
    std::unique_ptr<nn::Layer> model = make_model(request);
    std::unique_ptr<Batches> batches = make_batches(request);
    const dist::ClusterEnvironment self = dist::detect_environment();
    batches->share(self.rank, self.world_size);
    model_ = model.get();
    if (!request.value("alone", false)) {
      group_ = join_group(request);
      ddp_ = std::make_unique<dist::DistributedDataParallel>(model_->named_parameters(),
                                                             model_->named_buffers(), group_);
    }
    steps_ = training_job(std::move(model), std::move(batches));
  }

  Outputs outputs() override {
    Outputs losses = steps_->outputs();
    if (ddp_ != nullptr) check_equal();
    losses.resize(std::min(losses.size(), checked_));
    return losses;
  }
  std::vector<double> run(int n) override { return steps_->run(n); }

 private:
  // Bit for bit on all ranks.
  void check_equal() const {
    for (const auto& [name, p] : model_->named_parameters()) {
      const Tensor least = raw::clone(p), most = raw::clone(p);
      group_->all_reduce(least, dist::ReduceOp::min);
      group_->all_reduce(most, dist::ReduceOp::max);
      const auto bytes = static_cast<size_t>(least.nbytes());
      check(std::memcmp(least.raw_data(), most.raw_data(), bytes) == 0, "check: ", name,
            " must be the same on all ranks");
    }
  }

  size_t checked_;  // losses that are compared
  std::shared_ptr<dist::ProcessGroup> group_;
  std::unique_ptr<dist::DistributedDataParallel> ddp_;
  std::unique_ptr<Job> steps_;
  nn::Layer* model_ = nullptr;
};

}  // namespace

std::unique_ptr<Job> all_reduce_job(const json& request) {
  return std::make_unique<AllReduce>(request);
}
std::unique_ptr<Job> ddp_job(const json& request) { return std::make_unique<Ddp>(request); }

}  // namespace cairn::bench
