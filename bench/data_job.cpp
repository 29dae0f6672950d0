// The data pipeline: Fashion-MNIST through ToTensor and Normalize, shuffled, in batches of 128.
// Invariant: a measurement is a whole epoch, from begin() to the last batch; setup reads the files.
#include <cairn/cairn.h>

#include <ctime>
#include <filesystem>

#include "bench/jobs.h"

namespace cairn::bench {
namespace {

constexpr int64_t kPixels = 28 * 28;

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

  // Sums over an epoch, which no order changes: images, labels, squares of the pixels; then the
  // squares times their image's label and times their place, which show wrong pairs and places.
  Outputs outputs() override {
    double images = 0, labels = 0, squares = 0, by_label = 0, by_place = 0;
    const Tensor place = arange(0, kPixels, 1, {.dtype = DType::f64});
    for (const Batch& batch : loader_) {
      const Tensor pixels = square(to(reshape(batch.input, {batch.size(), kPixels}), DType::f64));
      const Tensor label = to(batch.target, DType::f64);
      images += static_cast<double>(batch.size());
      labels += sum(label).item();
      squares += sum(pixels).item();
      by_label += sum(mul(sum(pixels, {1}), label)).item();
      by_place += sum(mul(pixels, place)).item();
    }
    return {{images}, {labels}, {squares}, {by_label}, {by_place}};
  }

  std::vector<double> run(int n) override {
    std::vector<double> rates;
    for (int i = 0; i < n; ++i) {
      int64_t images = 0;
      const auto start = std::chrono::steady_clock::now();
      const double cpu = cpu_seconds();
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
