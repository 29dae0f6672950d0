// What a steady training step of ResNet18 does not do: ask the system for memory, move a weight to
// another layout, write a gradient twice, or depend on the number of threads.
// A move is a copy, fill or sum between tensors of a weight's size. Panels that a product packs for
// its own tiles are part of the product.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/loss.h"
#include "cairn/nn/models/resnet.h"
#include "cairn/optim/adam.h"
#include "cairn/tensor/parallel.h"
#include "cairn/tensor/profiler.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"

using namespace cairn;

namespace {

// The job's model on one batch; of 3, no activation has as many elements as a weight.
struct Job {
  explicit Job(int64_t size, int64_t batch = 3)
      : x(randn({batch, 1, size, size})), target(randint(0, 10, {batch})) {}

  void gradients() {
    const Tensor out = cross_entropy(model(x), target);
    optimizer->zero_grad();
    backward(out);
    loss = out.item();
  }
  void step() {
    gradients();
    optimizer->step();
  }

  nn::ResNet model{nn::resnet18({.in_channels = 1, .num_classes = 10})};
  std::shared_ptr<optim::Optimizer> optimizer = optim::adam(model.parameters(), {.lr = 1e-3});
  Tensor x;
  Tensor target;
  double loss = 0;
};

// The numbers of elements in "f32[8,64] +f32[64]"; of those behind a + alone where asked.
std::vector<int64_t> sizes_in(const std::string& shapes, bool added_only = false) {
  std::vector<int64_t> out;
  size_t at = 0;
  while ((at = shapes.find('[', at)) != std::string::npos) {
    size_t start = shapes.rfind(' ', at);
    start = start == std::string::npos ? 0 : start + 1;
    int64_t numel = 1;
    for (size_t digit = at + 1; shapes[at] != ']'; ++at)
      if (shapes[at + 1] == ',' || shapes[at + 1] == ']') {
        if (at + 1 > digit) numel *= std::stoll(shapes.substr(digit, at + 1 - digit));
        digit = at + 2;
      }
    if (!added_only || shapes[start] == '+') out.push_back(numel);
  }
  return out;
}

std::set<int64_t> weight_sizes(const nn::Module& model) {
  std::set<int64_t> out;
  for (const Tensor& p : model.parameters())
    if (p.dim() > 1) out.insert(p.numel());
  return out;
}

int64_t calls_of(const std::vector<profiler::Row>& rows, const std::string& name) {
  int64_t calls = 0;
  for (const auto& row : rows)
    if (row.name == name && row.kind == profiler::Kind::kernel) calls += row.calls;
  return calls;
}

// Kernels that compute with weights, and so have tensors of their sizes among their arguments.
const std::set<std::string> kProducts = {"conv2d_fwd", "conv2d_bwd_data",   "conv2d_bwd_weight",
                                         "linear_fwd", "linear_bwd_weight", "matmul"};

std::string bits_of(const nn::Module& model) {
  std::string out;
  for (const auto& [name, tensor] : model.state_dict()) {
    const Tensor values = raw::contiguous(tensor);
    out.append(static_cast<const char*>(values.raw_data()), static_cast<size_t>(values.nbytes()));
  }
  for (const Tensor& p : model.parameters()) {
    const Tensor values = raw::contiguous(grad(p));
    out.append(static_cast<const char*>(values.raw_data()), static_cast<size_t>(values.nbytes()));
  }
  return out;
}

}  // namespace

TEST_CASE("nn: sizes are read from the profiler's shapes") {
  CHECK(sizes_in("f32[8,64] +f32[3] i64[]") == std::vector<int64_t>{512, 3, 1});
  CHECK(sizes_in("f32[8,64] +f32[3] i64[]", true) == std::vector<int64_t>{3});
  CHECK(sizes_in("").empty());
}

TEST_CASE("nn: a steady training step takes no memory from the system") {
  Job job(28);
  job.step();
  job.step();
  int64_t per_step = 0;
  for (int step = 0; step < 4; ++step) {
    const MemoryStats before = memory_stats();
    job.step();
    const MemoryStats after = memory_stats();
    CHECK(after.system_allocations == before.system_allocations);
    CHECK(after.allocated == before.allocated);
    const int64_t count = after.allocations - before.allocations;
    if (step == 0) per_step = count;
    CHECK(count == per_step);
  }
  CHECK(per_step > 0);
}

TEST_CASE("nn: a steady training step moves no weight and no weight's gradient") {
  Job job(28);
  const std::set<int64_t> sizes = weight_sizes(job.model);
  REQUIRE(sizes.count(512 * 512 * 9) == 1);
  job.step();
  job.step();
  profiler::Profile profile;
  job.step();
  profile.stop();
  const auto rows = profile.rows({.by_shape = true});
  CHECK(calls_of(rows, "conv2d_fwd") == 20);
  for (const auto& row : rows)
    for (const int64_t numel : sizes_in(row.shapes))
      if (sizes.count(numel) != 0 && kProducts.count(row.name) == 0)
        FAIL_CHECK(row.name << " " << row.shapes << " works on as many elements as a weight has");

  // The check can fail: one weight moved to another layout and back is two findings.
  profiler::Profile moving;
  const Tensor weight = job.model.layer1.parameters().front();
  const Tensor moved = raw::clone(raw::contiguous(weight));
  moving.stop();
  REQUIRE(sizes.count(weight.numel()) == 1);
  int64_t found = 0;
  for (const auto& row : moving.rows({.by_shape = true}))
    for (const int64_t numel : sizes_in(row.shapes)) found += sizes.count(numel);
  CHECK(found >= 2);
}

TEST_CASE("nn: each gradient is written once, by its kernel, into the arena") {
  Job job(64);  // every tap meets data
  const std::vector<Tensor> parameters = job.model.parameters();
  job.step();
  std::vector<Tensor> memory;
  for (const Tensor& p : parameters) memory.push_back(grad(p));
  for (const Tensor& g : memory) {
    REQUIRE(g.storage() == memory.front().storage());
    raw::fill_(g, std::numeric_limits<double>::quiet_NaN());
  }
  profiler::Profile profile;
  job.gradients();
  profile.stop();

  // Overwritten: no NaN is left, so nothing was added to what was there.
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Tensor g = raw::contiguous(grad(parameters[i]));
    CHECK(grad(parameters[i]).raw_data() == memory[i].raw_data());
    CHECK(std::all_of(g.data<float>(), g.data<float>() + g.numel(),
                      [](float v) { return std::isfinite(v); }));
  }
  // Once: one call of a gradient kernel for each layer, none of which adds to a weight's gradient.
  const auto rows = profile.rows({.by_shape = true});
  CHECK(calls_of(rows, "conv2d_bwd_weight") == 20);
  CHECK(calls_of(rows, "batch_norm_fwd") == 20);
  CHECK(calls_of(rows, "batch_norm_bwd") == 20);
  CHECK(calls_of(rows, "linear_fwd") == 1);
  CHECK(calls_of(rows, "matmul") == 1);             // the last layer's input's gradient
  CHECK(calls_of(rows, "linear_bwd_weight") == 1);  // and its weight's and bias's
  const std::set<int64_t> sizes = weight_sizes(job.model);
  for (const auto& row : rows)
    for (const int64_t numel : sizes_in(row.shapes, true))
      if (sizes.count(numel) != 0) FAIL_CHECK(row.name << " adds: " << row.shapes);
}

TEST_CASE("nn: training steps give the same bits on 1, 2 and 4 threads") {
  const int before = num_threads();
  std::string first;
  for (const int threads : {1, 2, 4}) {
    set_num_threads(threads);
    manual_seed(3);
    Job job(28, 32);  // large enough for every kernel to split
    job.step();
    job.step();
    const std::string bits = bits_of(job.model) + cat(job.loss);
    if (first.empty()) first = bits;
    CHECK((bits == first));
  }
  set_num_threads(before);
}
