// The Cairn side of `./run bench step`: sets up one training job and times steps of it.
// Invariant: the same weights, batches and bounds of a step as bench/peer_torch.py; bench.py
// documents the protocol (one JSON object per line on stdin, one on stdout).
#include <cairn/cairn.h>

#include <array>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cairn/data/byte_reader.h"
#include "tests/parity/formula.h"

namespace {

using namespace cairn;
using nlohmann::json;

constexpr int64_t kBatches = 64;  // distinct batches, from the front of the training file
constexpr int64_t kSide = 28;     // of an image in the file
constexpr float kMean = 0.28604f, kStd = 0.32025f;

struct Row {
  const char* name;
  int64_t size, channels, batch;
};
constexpr std::array<Row, 3> kRows{{
    {"28x28_b128", 28, 1, 128},
    {"32x32_b128", 32, 3, 128},
    {"224x224_b16", 224, 3, 16},
}};

const Row& find_row(const std::string& name) {
  for (const Row& row : kRows) {
    if (name == row.name) return row;
  }
  throw Error("setup: row must be one of 28x28_b128, 32x32_b128, 224x224_b16, got " + name);
}

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

// The first `count` bytes behind the header of an IDX file, gzipped or not. Not the whole file:
// peak memory is one of the rows.
std::vector<uint8_t> read_front(const std::string& folder, const char* stem, size_t header,
                                size_t count) {
  std::string path = folder + "/" + stem;
  if (!std::filesystem::exists(path)) path += ".gz";
  data::ByteReader reader(path, "setup", path);
  std::vector<uint8_t> bytes(header);
  check(reader.read(bytes.data(), header) == header, "setup: ", path, " must have a header");
  bytes.resize(count);
  const size_t got = reader.read(bytes.data(), count);
  check(got == count, "setup: ", path, " must hold ", count, " bytes of data, got ", got);
  return bytes;
}

// Weights that both sides can make.
void fill_from_formula(nn::Module& model) {
  nn::StateDict filled;
  int64_t place = 0;
  for (const auto& [name, entry] : model.state_dict()) {
    const parity::Fill fill = parity::resnet_fill(name, entry.shape());
    Tensor values = empty(entry.shape(), {.dtype = DType::f64});
    double* out = values.data<double>();
    for (int64_t i = 0; i < values.numel(); ++i) {
      out[i] = fill.scale == 0 ? fill.shift : parity::value(place, i, fill.scale, fill.shift);
    }
    if (is_floating(entry.dtype())) filled.insert(name, values);
    ++place;
  }
  // Not strict: the counters stay as they are, at 0.
  const nn::LoadReport report = model.load_state_dict(filled, {.strict = false});
  check(report.unexpected.empty() && report.mismatched.empty(),
        "setup: weights must fit the model");
}

class Job {
 public:
  Job(const Row& row, bool formula_weights, const std::string& folder)
      : row_(row), model_(nn::resnet18({.in_channels = row.channels, .num_classes = 10})) {
    if (formula_weights) fill_from_formula(model_);
    model_.train();
    optimizer_ = std::make_unique<optim::Adam>(model_.parameters(), optim::AdamOptions{.lr = 1e-3});
    const auto count = static_cast<size_t>(kBatches * row.batch);
    images_ = read_front(folder, "train-images-idx3-ubyte", 16, count * kSide * kSide);
    labels_ = read_front(folder, "train-labels-idx1-ubyte", 8, count);
  }

  // Milliseconds and loss of one training step on the next batch.
  std::pair<double, double> step() {
    const Batch batch = make_batch();
    const auto start = std::chrono::steady_clock::now();
    optimizer_->zero_grad();
    Tensor loss = cross_entropy(model_(batch.input), batch.target);
    backward(loss);
    optimizer_->step();
    const double value = loss.item();
    return {milliseconds_since(start), value};
  }

 private:
  Batch make_batch() {
    const int64_t first = next_++ % kBatches * row_.batch;
    const Shape shape{row_.batch, row_.channels, row_.size, row_.size};
    Tensor input = row_.channels == 1 ? empty(shape) : empty_channels_last(shape);
    Tensor target = empty({row_.batch}, {.dtype = DType::i64});
    float* out = input.data<float>();
    for (int64_t n = 0; n < row_.batch; ++n) {
      const uint8_t* image = images_.data() + (first + n) * kSide * kSide;
      for (int64_t y = 0; y < row_.size; ++y) {
        for (int64_t x = 0; x < row_.size; ++x) {
          const uint8_t byte = image[y * kSide / row_.size * kSide + x * kSide / row_.size];
          const float value = (static_cast<float>(byte) / 255.0f - kMean) / kStd;
          for (int64_t c = 0; c < row_.channels; ++c) *out++ = value;  // channels last, or one
        }
      }
      target.data<int64_t>()[n] = labels_[static_cast<size_t>(first + n)];
    }
    return {input, target};
  }

  Row row_;
  nn::ResNet model_;
  std::unique_ptr<optim::Adam> optimizer_;
  std::vector<uint8_t> images_, labels_;
  int64_t next_ = 0;
};

int64_t peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    int64_t kib = 0;
    if (word == "VmHWM:" && status >> kib) return kib * 1024;
  }
  throw Error("rss: /proc/self/status must have a VmHWM line, got none");
}

json answer(std::unique_ptr<Job>& job, const json& request) {
  const std::string command = request.value("cmd", "");
  if (command == "info") {
    return {{"name", "Cairn"}, {"version", std::string(version())}, {"threads", num_threads()}};
  }
  if (command == "setup") {
    const auto start = std::chrono::steady_clock::now();
    set_num_threads(request.value("threads", 2));
    job = std::make_unique<Job>(find_row(request.at("row")),
                                request.value("weights", "formula") == "formula",
                                request.at("data").get<std::string>());
    return {{"ms", milliseconds_since(start)}};
  }
  if (command == "step") {
    check(job != nullptr, "step: setup must come first");
    json times = json::array(), losses = json::array();
    for (int i = 0; i < request.at("n").get<int>(); ++i) {
      const auto [ms, loss] = job->step();
      times.push_back(ms);
      losses.push_back(loss);  // NaN becomes null
    }
    return {{"ms", times}, {"losses", losses}};
  }
  if (command == "rss") return {{"bytes", peak_resident_bytes()}};
  throw Error("cmd must be one of info, setup, step, rss, quit, got " + command);
}

}  // namespace

int main() {
  std::unique_ptr<Job> job;
  std::string line;
  while (std::getline(std::cin, line)) {
    json reply;
    try {
      const json request = json::parse(line);
      if (request.value("cmd", "") == "quit") break;
      reply = answer(job, request);
    } catch (const std::exception& error) {
      reply = {{"error", error.what()}};
    }
    std::cout << reply.dump() << std::endl;
  }
}
