// What the Cairn side of `./run bench` can do: one Job per kind of work, and two measurements.
// Invariant: a job does what the peer's job of the same request does (bench/peer_torch.py): same
// weights, same batches, same bounds of what is timed.
#pragma once

#include <chrono>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cairn/nn/container.h"
#include "cairn/tensor/parallel.h"

namespace cairn::bench {

using nlohmann::json;
using Outputs = std::vector<std::vector<double>>;

class Batches;  // batches.h

class Job {
 public:
  virtual ~Job() = default;
  // Numbers that both sides must agree on: a list of lists. Asked for before run().
  virtual Outputs outputs() = 0;
  // `n` measurements, in the unit of the job.
  virtual std::vector<double> run(int n) = 0;
};

// {"model": resnet18 | resnet50 | mlp | transformer, "mode": train | infer, …}: milliseconds.
std::unique_ptr<Job> model_job(const json& request);
// Its training steps, on batches that the caller chose.
std::unique_ptr<Job> training_job(std::unique_ptr<nn::Layer> model,
                                  std::unique_ptr<Batches> batches);
// {"bytes": n, "calls": k, "backend": name}: milliseconds of one of k all-reduces in a row, as one
// rank of the group that the environment tells of.
std::unique_ptr<Job> all_reduce_job(const json& request);
// As model_job with mode train, as one rank on its share of the batches: through
// DistributedDataParallel, or with {"alone": true} without a word to the others. {"checked": n}:
// only the first n losses are compared.
std::unique_ptr<Job> ddp_job(const json& request);
// {"model": …, "device": cuda | cpu, "precision": f32 | bf16-mixed, …}: milliseconds of a step.
std::unique_ptr<Job> device_job(const json& request);
// The request's model with the request's weights, on the CPU.
std::unique_ptr<nn::Layer> make_model(const json& request);
// {"op": forward | record | backward}: nanoseconds of one add of two 8x8 tensors.
std::unique_ptr<Job> op_job(const json& request);
// {"clock": cpu | wall, "data": DIR}: images per second through the job's transforms.
std::unique_ptr<Job> data_job(const json& request);

// The folder with Fashion-MNIST's training files: `wanted` where it is not empty, else where
// data::FashionMNIST looks; downloaded where there is none.
std::string find_fashion_mnist(const std::string& wanted);

// Multiply-add rate of all threads on registers alone: {"gflops": [5 numbers], "target": name}.
json fma_peak();
// Rate of copying between buffers much larger than the caches, bytes read plus bytes written:
// {"gbytes": [5 numbers]}.
json bandwidth();
// The product and convolution kernels on ResNet18's layers: {"what": conv | gemm, …}.
json kernels_on_layers(const json& request);

// Seconds for the machine's peaks and the kernels held against them. With one thread it is that
// thread's CPU time, so that other processes do not count.
inline double now() {
  timespec t{};
  clock_gettime(num_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace cairn::bench
