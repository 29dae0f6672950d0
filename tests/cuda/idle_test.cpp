// Taps of a convolution that only meet padding, on the GPU: the step leaves them out, eager and
// captured, with the bits of the full computation.
#include <cmath>
#include <functional>
#include <memory>
#include <vector>

#include "cairn/autograd/autocast.h"
#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/indexing.h"
#include "cairn/autograd/ops/loss.h"
#include "cairn/autograd/ops/reduce.h"
#include "cairn/data/data_loader.h"
#include "cairn/data/image_dataset.h"
#include "cairn/kernels/optim.h"
#include "cairn/nn/conv.h"
#include "cairn/optim/adam.h"
#include "cairn/optim/clip.h"
#include "cairn/optim/sgd.h"
#include "cairn/tensor/capture.h"
#include "cairn/tensor/cuda.h"
#include "cairn/tensor/profiler.h"
#include "cairn/trainer/trainer.h"
#include "tests/cuda/both.h"
#include "tests/temp_folder.h"

using namespace cairn;
using namespace cairn::both;
using test::error_text;

namespace {

constexpr int64_t kIn = 8, kOut = 16;

struct Net {
  Net() {
    Generator generator(5);
    for (const Tensor& p : parameters()) uniform_(p, -1, 1, generator);
    first.to(kGpu);
    second.to(kGpu);
  }
  std::vector<Tensor> parameters() const {
    return {first.weight, first.bias, second.weight, second.bias};
  }
  nn::Conv2d first{kIn, kOut, 3, {.padding = 1}};
  nn::Conv2d second{kOut, kIn, 3, {.padding = 1}};
};

Tensor images(int64_t size, int step) {
  Generator generator(static_cast<uint64_t>(100 + step));
  return raw::to(randn({4, kIn, size, size}, {}, generator), DType::f32, kGpu);
}

void run_backward(Net& net, const Tensor& x) {
  const Tensor y = net.second(net.first(x));
  backward(sum(mul(y, y)));
}

// Parameters and states, bit by bit.
std::vector<Tensor> results_of(const Net& net, optim::Optimizer& optimizer) {
  std::vector<Tensor> out = net.parameters();
  for (const auto& [name, t] : optimizer.state_dict().tensors) out.push_back(t);
  for (Tensor& t : out) t = raw::to(t, t.dtype(), kCPU);
  return out;
}

void check_same(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  REQUIRE(a.size() == b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    INFO("tensor " << i);
    CHECK(same_bits(a[i], b[i]));
  }
}

using Make = std::function<std::unique_ptr<optim::Optimizer>(std::vector<Tensor>)>;

Make adam_of(const optim::AdamOptions& options) {
  return [options](auto p) { return optim::adam(std::move(p), options); };
}
Make sgd_of(const optim::SgdOptions& options) {
  return [options](auto p) { return optim::sgd(std::move(p), options); };
}

// Who asks for a gradient may write to it: nothing of it is left out then.
void ask_for_gradients(const Net& net) {
  for (const Tensor& p : net.parameters()) (void)grad(p);
}

enum class Clip { none, value, norm };

// 1x1 maps, then 4x4, which every tap meets, then 1x1.
std::vector<Tensor> train(const Make& make, Clip clip, bool full) {
  Net net;
  const auto optimizer = make(net.parameters());
  const int64_t sizes[] = {1, 1, 1, 4, 4, 1, 1, 2, 1};
  for (int step = 0; step < 9; ++step) {
    optimizer->zero_grad();
    run_backward(net, images(sizes[step], step));
    if (step == 6) run_backward(net, images(2, 50));  // accumulates what more taps reach
    if (clip == Clip::value) optim::clip_grad_value_(net.parameters(), 0.5);
    if (clip == Clip::norm) optim::clip_grad_norm_(net.parameters(), 0.5);
    if (full) ask_for_gradients(net);
    const bool sparse = sizes[step] == 1 && step != 6 && !full && clip != Clip::norm;
    CHECK(grad_zeros(net.first.weight).empty() == !sparse);
    optimizer->step();
  }
  return results_of(net, *optimizer);
}

// Bytes that the optimizer's kernels work on in what body does.
int64_t bytes_stepped(const std::function<void()>& body) {
  profiler::Profile profile;
  body();
  profile.stop();
  int64_t bytes = 0;
  for (const profiler::Row& row : profile.rows())
    if (row.name == "adam_step" || row.name == "sgd_step") bytes += row.bytes;
  return bytes;
}

constexpr int64_t kWeights = 9 * kIn * kOut, kLive = kIn * kOut;
constexpr int64_t kAdamBytes = 4 * 4;  // parameter, gradient and two states
constexpr int64_t kAll = kAdamBytes * (2 * kWeights + kIn + kOut);
constexpr int64_t kSparse = kAdamBytes * (2 * kLive + kIn + kOut);

}  // namespace

TEST_CASE("cuda: idle: leaving out taps over padding changes no bit") {
  const std::pair<const char*, Make> cases[] = {
      {"adam", adam_of({.lr = 0.1})},
      {"adam amsgrad", adam_of({.lr = 0.1, .amsgrad = true})},
      {"adam decay", adam_of({.lr = 0.1, .weight_decay = 0.1})},
      {"adam maximize", adam_of({.lr = 0.1, .maximize = true})},
      {"adamw", [](auto p) { return optim::adamw(std::move(p), {.lr = 0.1}); }},
      {"adamw without decay",
       [](auto p) { return optim::adamw(std::move(p), {.lr = 0.1, .weight_decay = 0}); }},
      {"sgd", sgd_of({.lr = 0.01})},
      {"sgd momentum", sgd_of({.lr = 0.01, .momentum = 0.9})},
      {"sgd nesterov", sgd_of({.lr = 0.01, .momentum = 0.9, .nesterov = true})},
      {"sgd decay", sgd_of({.lr = 0.01, .weight_decay = 0.1})},
  };
  for (const auto& [name, make] : cases)
    for (Clip clip : {Clip::none, Clip::value, Clip::norm}) {
      INFO(name << ", clipping " << static_cast<int>(clip));
      check_same(train(make, clip, false), train(make, clip, true));
    }
  CHECK(emulator::guard_violations() == 0);
}

TEST_CASE("cuda: idle: what is left out, and that nothing waits for it") {
  Net net;
  const auto optimizer = optim::adam(net.parameters());
  const auto step = [&](int64_t size, int i) {
    optimizer->zero_grad();
    run_backward(net, images(size, i));
    return bytes_stepped([&] { optimizer->step(); });
  };
  const int64_t waits = cuda::waits();
  CHECK(step(1, 0) == kSparse);
  CHECK(step(1, 1) == kSparse);
  (void)optimizer->state_dict();  // a checkpoint
  CHECK(step(1, 2) == kSparse);
  CHECK(step(4, 3) == kAll);
  CHECK(step(1, 4) == kAll);  // momentum of the step before
  CHECK(cuda::waits() == waits);
  // Of 2x2 maps a tap of the 3x3 sees each pixel, of 1x1 only the middle one.
  CHECK(grad_zeros(net.first.weight) ==
        kernels::ZeroPattern{{{0, 4 * kIn}, {5 * kIn, 9 * kIn}}, 9 * kIn});
}

TEST_CASE("cuda: idle: the half type's zeros are the parameter's") {
  std::vector<Tensor> results[2];
  for (bool full : {false, true}) {
    Net net;
    const auto optimizer = optim::adam(net.parameters(), {.lr = 0.1});
    for (int i = 0; i < 3; ++i) {
      optimizer->zero_grad();
      {
        const Autocast autocast(DType::bf16);
        run_backward(net, images(1, i));
        if (i == 1) run_backward(net, images(1, 10));  // accumulates
      }
      if (full) ask_for_gradients(net);
      const int64_t bytes = bytes_stepped([&] { optimizer->step(); });
      CHECK(bytes == (full ? kAll : kSparse));
    }
    results[full] = results_of(net, *optimizer);
  }
  check_same(results[0], results[1]);
}

TEST_CASE("cuda: idle: loaded and written states are looked at once") {
  Net net;
  const auto optimizer = optim::adam(net.parameters(), {.lr = 0.1});
  const auto step = [&](optim::Optimizer& o, int64_t size, int i) {
    o.zero_grad();
    run_backward(net, images(size, i));
    return bytes_stepped([&] { o.step(); });
  };
  step(*optimizer, 1, 0);
  optim::State sparse = optimizer->state_dict();
  for (auto& [name, t] : sparse.tensors) t = raw::to(t, t.dtype(), kCPU);
  step(*optimizer, 4, 1);
  const optim::State full = optimizer->state_dict();

  const auto other = optim::adam(net.parameters(), {.lr = 0.1});
  other->load_state_dict(full);
  CHECK(step(*other, 1, 2) == kAll);
  other->load_state_dict(sparse);
  const int64_t waits = cuda::waits();
  CHECK(step(*other, 1, 3) == kSparse);
  CHECK(cuda::waits() > waits);
  const int64_t looked = cuda::waits();
  CHECK(step(*other, 1, 4) == kSparse);
  CHECK(cuda::waits() == looked);

  // One element that only padding meets.
  const Tensor state = other->state_dict().tensors.at("state.0.exp_avg");
  const Tensor element(state.storage(), state.dtype(), {1}, {1}, state.offset());
  const Tensor weight(net.first.weight.storage(), DType::f32, {1}, {1}, net.first.weight.offset());
  add_(element, raw::to(tensor({1.f}), DType::f32, kGpu));
  const double before = weight.item();
  CHECK(step(*other, 1, 5) > kSparse);
  CHECK(weight.item() != before);
}

TEST_CASE("cuda: idle: a gradient written from outside is stepped in full") {
  Net net;
  const auto optimizer = optim::sgd(net.parameters(), {.lr = 1});
  const Tensor weight(net.first.weight.storage(), DType::f32, {1}, {1}, net.first.weight.offset());
  const auto write = [](const Tensor& g) {
    raw::fill_(Tensor(g.storage(), g.dtype(), {1}, {1}, g.offset()), 2);
  };
  run_backward(net, images(1, 0));
  const double before = weight.item();
  SECTION("through a fresh handle") { write(grad(net.first.weight)); }
  SECTION("through an old handle") {
    const Tensor handle = grad(net.first.weight);
    optimizer->zero_grad();
    run_backward(net, images(1, 1));
    write(handle);
  }
  optimizer->step();
  CHECK(weight.item() == before - 2);
  optimizer->zero_grad();
  run_backward(net, images(1, 2));
  const Tensor cleared = grad(net.first.weight);
  CHECK(Tensor(cleared.storage(), DType::f32, {1}, {1}, cleared.offset()).item() == 0);
}

TEST_CASE("cuda: idle: a norm of NaN reaches every tap") {
  Net net;
  const auto optimizer = optim::sgd(net.parameters(), {.lr = 1});
  run_backward(net, images(1, 0));
  raw::fill_(grad(net.first.bias), NAN);
  optim::clip_grad_norm_(net.parameters(), 1);
  optimizer->step();
  const Tensor weight = raw::to(net.first.weight, DType::f32, kCPU);
  CHECK(std::isnan(
      raw::select(raw::select(raw::select(raw::select(weight, 0, 0), 0, 0), 0, 0), 0, 0).item()));
}

TEST_CASE("cuda: idle: momentum that was off for a while moves what it knew") {
  Net net;
  const auto optimizer = optim::sgd(net.parameters(), {.lr = 0.01, .momentum = 0.9});
  const Tensor weight(net.first.weight.storage(), DType::f32, {1}, {1}, net.first.weight.offset());
  const auto step = [&](int64_t size, int i, double momentum) {
    optimizer->set_momentum(0, momentum);
    optimizer->zero_grad();
    run_backward(net, images(size, i));
    optimizer->step();
    return weight.item();
  };
  step(4, 0, 0.9);
  const double still = step(1, 1, 0);
  CHECK(step(1, 2, 0) == still);
  CHECK(step(1, 3, 0.9) != still);
}

TEST_CASE("cuda: idle: steps captured without the taps, and when they must not run") {
  const Make makes[] = {adam_of({.lr = 0.1}), sgd_of({.lr = 0.01, .momentum = 0.9})};
  for (const Make& make : makes) {
    Net captured, full;
    const auto a = make(captured.parameters()), b = make(full.parameters());
    a->set_capturable(true);
    const Tensor x = images(1, 0);
    const auto step = [](Net& net, optim::Optimizer& o, const Tensor& batch, bool ask) {
      o.zero_grad();
      run_backward(net, batch);
      if (ask) ask_for_gradients(net);
      o.step();
    };
    const auto eager = [&](int64_t size, int i) {
      step(captured, *a, images(size, i), false);
      step(full, *b, images(size, i), true);
    };
    const auto capture_step = [&] {
      Capture capture(kGpu);
      step(captured, *a, x, false);
      return capture.finish();
    };
    const auto launch = [&](CapturedGraph& graph, int i) {
      raw::copy_(x, images(1, i));
      graph.launch();
      step(full, *b, images(1, i), true);
    };
    eager(1, 1);
    CapturedGraph graph = capture_step();
    for (int i : {2, 3, 4}) launch(graph, i);
    eager(1, 5);
    launch(graph, 6);
    (void)a->state_dict();
    CHECK(graph.holds());
    check_same(results_of(captured, *a), results_of(full, *b));

    eager(4, 7);
    CHECK(!graph.holds());
    CHECK(error_text([&] { graph.launch(); }) ==
          "launch: graph must find zeros in a gradient as when it was captured, got others; "
          "capture it anew");
    graph = capture_step();  // which clears the gradient itself, and steps all
    for (int i : {8, 9}) launch(graph, i);
    eager(4, 10);
    launch(graph, 11);
    check_same(results_of(captured, *a), results_of(full, *b));
  }
}

TEST_CASE("cuda: idle: a captured step does not run over states that were written") {
  Net net;
  const auto optimizer = optim::adam(net.parameters());
  optimizer->set_capturable(true);
  const Tensor x = images(1, 0);
  run_backward(net, x);
  optimizer->step();
  const auto capture_step = [&] {
    Capture capture(kGpu);
    optimizer->zero_grad();
    run_backward(net, x);
    optimizer->step();
    return capture.finish();
  };
  CapturedGraph graph = capture_step();
  graph.launch();
  SECTION("in place") {
    mul_(optimizer->state_dict().tensors.at("state.0.exp_avg"), full({}, 2, {DType::f32, kGpu}));
  }
  SECTION("by loading") { optimizer->load_state_dict(optimizer->state_dict()); }
  CHECK(error_text([&] { graph.launch(); }) ==
        "launch: graph must find an optimizer's states as when it was captured, got others; "
        "capture it anew");
}

TEST_CASE("cuda: idle: a step captured without momentum has no states for one") {
  Net captured, eager;
  const auto a = optim::sgd(captured.parameters(), {.lr = 0.01});
  const auto b = optim::sgd(eager.parameters(), {.lr = 0.01});
  a->set_capturable(true);
  const Tensor x = images(1, 0);
  const auto step = [&](Net& net, optim::Optimizer& o) {
    o.zero_grad();
    run_backward(net, x);
    o.step();
  };
  const auto capture_step = [&] {
    Capture capture(kGpu);
    step(captured, *a);
    return capture.finish();
  };
  const auto set_momentum = [&](double momentum) {
    a->set_momentum(0, momentum);
    b->set_momentum(0, momentum);
  };
  step(captured, *a);
  step(eager, *b);
  CapturedGraph graph = capture_step();
  for (double momentum : {0.0, 0.9, 0.5, 0.0}) {
    const bool holds = momentum == 0.5 || a->momentum(0) == momentum;
    set_momentum(momentum);
    CHECK(graph.holds() == holds);
    if (!holds) graph = capture_step();
    graph.launch();
    step(eager, *b);
    check_same(results_of(captured, *a), results_of(eager, *b));
  }
}

TEST_CASE("cuda: idle: states are not made inside a captured step") {
  Net net;
  const auto optimizer = optim::sgd(net.parameters(), {.lr = 0.01, .momentum = 0.9});
  optimizer->set_capturable(true);
  run_backward(net, images(1, 0));
  CHECK(error_text([&] {
          Capture capture(kGpu);
          optimizer->step();
        }) == "sgd: states must be there before a step is captured, got none; run one step first");
}

namespace {

// Batches of 4 are 1x1 maps, smaller ones 2x2, which more taps see.
struct Sizes : trainer::TrainingModule {
  Sizes(std::string optimizer, bool small_maps_only)
      : optimizer(std::move(optimizer)), small_maps_only(small_maps_only) {}

  Tensor training_step(const Batch& batch, int64_t) override {
    ++calls;
    const int64_t n = batch.input.size(0);
    const int64_t size = n == 4 || small_maps_only ? 1 : 2;
    const Tensor x = reshape(slice(batch.input, 1, 0, kIn * size * size), {n, kIn, size, size});
    const Tensor loss = cross_entropy(mean(second(first(x)), {2, 3}), batch.target);
    log("loss", loss, {.on_step = true, .on_epoch = true});
    return loss;
  }
  OptimizerConfig configure_optimizers() override {
    if (optimizer == "adam") return optim::adam(parameters(), {.lr = 0.01});
    return optim::sgd(parameters(), {.lr = 0.05, .momentum = 0.9});
  }

  std::string optimizer;
  bool small_maps_only;
  int calls = 0;
  nn::Conv2d first{child("first"), kIn, kOut, 3, {.padding = 1}};
  nn::Conv2d second{child("second"), kOut, 3, 3, {.padding = 1}};
};

// Nothing is left out.
struct Asks : Sizes {
  using Sizes::Sizes;
  void on_before_optimizer_step(optim::Optimizer&) override {
    for (const Tensor& p : parameters()) (void)grad(p);
  }
};

struct Fit {
  std::vector<Tensor> results;
  std::vector<std::string> warnings;
  int calls;
};

Fit fit(Sizes& model, const char* capture) {
  Generator generator(3);
  const Tensor x = randn({22, kIn * 4}, {}, generator);  // 5 batches and a smaller one
  const data::TensorDataset set(x, randint(0, 3, {22}, {DType::i64}, generator));
  data::DataLoader loader(set, {.batch_size = 4});
  trainer::Trainer trainer({.max_epochs = 6,
                            .logger = false,
                            .enable_checkpointing = false,
                            .enable_progress_bar = false,
                            .log_every_n_steps = 0,
                            .capture_steps = capture});
  trainer.fit(model, loader);
  Fit out{{}, trainer.warnings(), model.calls};
  for (const Tensor& p : model.parameters()) out.results.push_back(raw::to(p, p.dtype(), kCPU));
  for (const auto& [name, t] : trainer.make_checkpoint().optimizer_tensors)
    out.results.push_back(raw::to(t, t.dtype(), kCPU));
  return out;
}

}  // namespace

TEST_CASE("cuda: idle: a fit with captured steps is the full computation") {
  for (const char* optimizer : {"adam", "sgd"})
    for (bool small_maps_only : {true, false}) {
      INFO(optimizer << ", only 1x1 maps " << small_maps_only);
      const auto run = [&]<class Model>(const char* capture) {
        manual_seed(7);
        Model model(optimizer, small_maps_only);
        return fit(model, capture);
      };
      const Fit full = run.template operator()<Asks>("off");
      const Fit eager = run.template operator()<Sizes>("off");
      const Fit captured = run.template operator()<Sizes>("auto");
      CHECK(captured.warnings.empty());
      CHECK(captured.calls < 36);
      check_same(eager.results, full.results);
      check_same(captured.results, full.results);
    }
}
