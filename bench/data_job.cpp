// The data pipeline: Fashion-MNIST through ToTensor and Normalize, shuffled, in batches of 128.
// Invariant: a measurement is whole epochs, from begin() to the last batch; setup reads the files.
#include <cairn/cairn.h>

#include <ctime>
#include <filesystem>

#include "bench/jobs.h"

namespace cairn::bench {
namespace {

constexpr int kEpochs = 3;  // of one measurement

// Seconds of processor time, user and system, of all threads.
double cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

class DataJob final : public Job {
 public:
  DataJob(const std::string& folder, bool cpu_clock)
      : cpu_clock_(cpu_clock),
        dataset_({.root = folder,
                  .train = true,
                  .transform = {data::ToTensor(), data::Normalize({0.28604f}, {0.32025f})}}),
        loader_(dataset_, {.batch_size = 128, .shuffle = true}) {}

  // Sums over an epoch, which no order changes: squares of the pixels, labels, images.
  Outputs outputs() override {
    double squares = 0;
    double labels = 0, images = 0;
    for (const Batch& batch : loader_) {
      squares += sum(square(to(batch.input, DType::f64))).item();
      labels += sum(batch.target).item();
      images += static_cast<double>(batch.size());
    }
    return {{squares}, {labels}, {images}};
  }

  std::vector<double> run(int n) override {
    std::vector<double> rates;
    for (int i = 0; i < n; ++i) {
      int64_t images = 0;
      const auto start = std::chrono::steady_clock::now();
      const double cpu = cpu_seconds();
      for (int epoch = 0; epoch < kEpochs; ++epoch)
        for (const Batch& batch : loader_) images += batch.size();
      const double seconds = cpu_clock_ ? cpu_seconds() - cpu : seconds_since(start);
      rates.push_back(static_cast<double>(images) / seconds);
    }
    return rates;
  }

 private:
  bool cpu_clock_;
  data::FashionMNIST dataset_;
  data::DataLoader loader_;
};

}  // namespace

std::unique_ptr<Job> data_job(const json& request) {
  return std::make_unique<DataJob>(request.at("data").get<std::string>(),
                                   request.at("clock") == "cpu");
}

}  // namespace cairn::bench
