// Data-parallel training with ranks as threads: results, what is agreed upon, and errors.
#include "cairn/dist/ddp.h"

#include <cmath>

#include "cairn/autograd/arena.h"
#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/indexing.h"
#include "cairn/autograd/ops/reduce.h"
#include "cairn/dist/local_group.h"
#include "cairn/dist/ring_group.h"
#include "cairn/dist/shm_group.h"
#include "cairn/dist/sync_batch_norm.h"
#include "cairn/nn/activation.h"
#include "cairn/nn/conv.h"
#include "cairn/nn/linear.h"
#include "cairn/nn/loss.h"
#include "cairn/nn/norm.h"
#include "cairn/optim/adam.h"
#include "cairn/optim/sgd.h"
#include "cairn/tensor/factory.h"
#include "cairn/tensor/parallel.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"
#include "tests/catch.h"
#include "tests/dist/thread_group.h"

using namespace cairn;
using namespace cairn::dist;
using Catch::Matchers::Contains;
using test::on_ranks;

namespace {

using Group = std::shared_ptr<ProcessGroup>;

// Small images, so that the second convolution has dead taps: its 5x5 kernel sees 2x2 pixels.
struct Net : nn::Module {
  explicit Net(uint64_t seed, bool with_norm = false)
      : conv1{child("conv1"), 1, 4, 3, {.padding = 1}},
        norm(with_norm ? std::make_unique<nn::BatchNorm2d>(child("norm"), 4) : nullptr),
        conv2{child("conv2"), 4, 8, 5, {.padding = 2}},
        fc{child("fc"), 8 * 2 * 2, 10} {
    Generator generator(seed);
    for (const auto& [name, p] : named_parameters())
      if (p.dim() > 1) raw::copy_(p, mul(randn(p.shape(), {}, generator), 0.2));
  }
  Tensor forward(const Tensor& x) {
    Tensor h = conv1(x);
    if (norm) h = (*norm)(h);
    return fc(flatten(relu(conv2(relu(h))), 1));
  }
  nn::Conv2d conv1;
  std::unique_ptr<nn::BatchNorm2d> norm;
  nn::Conv2d conv2;
  nn::Linear fc;
};

struct Data {
  Tensor images, labels;
  Data slice(int64_t begin, int64_t end) const {
    return {raw::slice(images, 0, begin, end), raw::slice(labels, 0, begin, end)};
  }
};

Data make_data(int64_t count) {
  Generator generator(7);
  return {randn({count, 1, 2, 2}, {}, generator),
          randint(0, 10, {count}, {.dtype = DType::i64}, generator)};
}

std::vector<float> values(const Tensor& t) {
  const Tensor c = raw::contiguous(t);
  return {c.data<float>(), c.data<float>() + c.numel()};
}

std::vector<std::vector<float>> parameters_of(const nn::Module& net) {
  std::vector<std::vector<float>> out;
  for (const auto& [name, p] : net.named_parameters()) out.push_back(values(p));
  return out;
}

double largest_difference(const std::vector<std::vector<float>>& a,
                          const std::vector<std::vector<float>>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i)
    for (size_t j = 0; j < a[i].size(); ++j)
      largest = std::max(largest, std::abs(static_cast<double>(a[i][j]) - b[i][j]));
  return largest;
}

// One thread in the pool, so that ranks that are threads run side by side.
struct OneThread {
  OneThread() : before(num_threads()) { set_num_threads(1); }
  ~OneThread() { set_num_threads(before); }
  int before;
};

struct Trained {
  std::vector<std::vector<float>> parameters;
};

// Calls body(group) on each rank: threads.
using OnRanks = std::function<void(int ranks, const std::function<void(const Group&)>& body)>;
const OnRanks kThreads = [](int ranks, const auto& body) { on_ranks(ranks, body); };

// `steps` steps over batches of 16 from `data`, of which each rank takes its part.
std::vector<Trained> train(int ranks, int steps, const DdpOptions& options, int64_t accumulate = 1,
                           bool with_norm = false, const OnRanks& on = kThreads) {
  const OneThread one;
  const Data data = make_data(64);
  std::vector<Trained> out(static_cast<size_t>(ranks));
  on(ranks, [&](const Group& group) {
    Net net(static_cast<uint64_t>(10 + group->rank()), with_norm);  // only rank 0's weights count
    if (with_norm) net.norm->set_replicas(batch_replicas(group));
    DistributedDataParallel ddp(net.named_parameters(), net.named_buffers(), group, options);
    // Where a gradient is 0 but for rounding, as that of a bias before a normalisation, Adam would
    // make steps of the rounding.
    const auto optimizer = with_norm ? optim::sgd(net.parameters(), {.lr = 1e-2})
                                     : optim::adam(net.parameters(), {.lr = 1e-2});
    const int64_t share = 16 / ranks / accumulate;
    for (int step = 0; step < steps; ++step) {
      optimizer->zero_grad();
      for (int64_t part = 0; part < accumulate; ++part) {
        const int64_t begin = step * 16 % 64 + (part * ranks + group->rank()) * share;
        const Data mine = data.slice(begin, begin + share);
        ddp.set_sync(part + 1 == accumulate);
        backward(mul(cross_entropy(net.forward(mine.images), mine.labels),
                     1.0 / static_cast<double>(accumulate)));
      }
      optimizer->step();
    }
    out[static_cast<size_t>(group->rank())].parameters = parameters_of(net);
  });
  return out;
}

}  // namespace

TEST_CASE("dist: ddp of several ranks equals one process with the joined batch") {
  const auto one = train(1, 20, {});
  for (const Overlap overlap : {Overlap::boundaries, Overlap::at_end, Overlap::concurrent}) {
    const auto two =
        train(2, 20, {.bucket_cap_mb = 0.001, .first_bucket_mb = 0.0001, .overlap = overlap});
    CHECK(two[0].parameters == two[1].parameters);
    CHECK(largest_difference(one[0].parameters, two[0].parameters) < 1e-6);
  }
  const auto four = train(4, 20, {});
  for (size_t r = 1; r < 4; ++r) CHECK(four[r].parameters == four[0].parameters);
  CHECK(largest_difference(one[0].parameters, four[0].parameters) < 1e-6);
}

TEST_CASE("dist: ddp with batch norm over all ranks equals one process with the joined batch") {
  const auto one = train(1, 20, {}, 1, true);
  const auto two = train(2, 20, {}, 1, true);
  CHECK(two[0].parameters == two[1].parameters);
  CHECK(largest_difference(one[0].parameters, two[0].parameters) < 1e-6);
}

TEST_CASE("dist: ddp over shared memory and over the ring gives what threads give") {
  const auto expected = train(2, 10, {.bucket_cap_mb = 0.001, .first_bucket_mb = 0.0001});
  for (const auto make : {shm_group, ring_group}) {
    const OnRanks on = [&](int ranks, const auto& body) {
      const auto store = memory_store();
      std::vector<std::thread> threads;
      std::vector<std::string> errors(static_cast<size_t>(ranks));
      for (int r = 0; r < ranks; ++r)
        threads.emplace_back([&, r] {
          errors[static_cast<size_t>(r)] = test::error_of([&] {
            body(make({.rank = r, .size = ranks, .store = store, .secret = "of this test"}));
          });
        });
      for (std::thread& thread : threads) thread.join();
      for (const std::string& error : errors) CHECK(error == "no error");
    };
    for (const Overlap overlap : {Overlap::boundaries, Overlap::at_end, Overlap::concurrent}) {
      const auto got =
          train(2, 10, {.bucket_cap_mb = 0.001, .first_bucket_mb = 0.0001, .overlap = overlap}, 1,
                false, on);
      CHECK(got[0].parameters == expected[0].parameters);
      CHECK(got[1].parameters == expected[0].parameters);
    }
  }
}

TEST_CASE("dist: ddp without sync accumulates, and the closing backward reduces all of it") {
  const auto one = train(1, 10, {});
  const auto two = train(2, 10, {}, 4);
  CHECK(two[0].parameters == two[1].parameters);
  CHECK(largest_difference(one[0].parameters, two[0].parameters) < 1e-6);
}

TEST_CASE("dist: ddp makes no calls without sync") {
  on_ranks(2, [](const Group& group) {
    Net net(1);
    DistributedDataParallel ddp(net.named_parameters(), net.named_buffers(), group);
    const uint64_t before = group->sequence();
    const Data data = make_data(4);
    {
      const auto quiet = ddp.no_sync();
      backward(cross_entropy(net.forward(data.images), data.labels));
    }
    RANK_CHECK(group->sequence() == before);
    RANK_CHECK(ddp.steps() == 0);
    backward(cross_entropy(net.forward(data.images), data.labels));
    RANK_CHECK(group->sequence() > before);
    RANK_CHECK(ddp.steps() == 1);
  });
}

TEST_CASE("dist: ddp buckets are ranges of the gradients in reverse order") {
  Net net(1);
  DistributedDataParallel ddp(net.named_parameters(), net.named_buffers(), local_group(),
                              {.bucket_cap_mb = 4096.0 / 1048576, .first_bucket_mb = 1e-5});
  // fc.bias alone, fc.weight and conv2.bias and conv2.weight until above 4 KiB, then the rest.
  const std::vector<int64_t> sizes = ddp.bucket_sizes();
  REQUIRE(sizes.size() >= 3);
  CHECK(sizes[0] == 10);
  CHECK(sizes[1] == 320 + 16 + 800);
}

// A convolution of which one pixel meets the middle tap alone.
struct DeadTaps {
  nn::Conv2d conv{64, 64, 3, {.padding = 1, .bias = false}};
  kernels::ZeroPattern zeros_after_step(int64_t size) {
    conv.zero_grad();
    backward(sum(conv(full({1, 64, size, size}, 1))));
    return grad_zeros(conv.weight);
  }
};

TEST_CASE("dist: ddp keeps what is known of zeros, where all ranks agree") {
  const OneThread one;
  on_ranks(2, [&](const Group& group) {
    DeadTaps net;
    DistributedDataParallel ddp(net.conv.named_parameters(), {}, group);
    const kernels::ZeroPattern known = net.zeros_after_step(1);
    RANK_CHECK(!known.empty());
    RANK_CHECK(net.zeros_after_step(1) == known);
    const float* memory = autograd_meta(net.conv.weight)->grad.data<float>();
    for (const kernels::ZeroRange& range : known.ranges)
      for (int64_t i = range.begin; i < range.end; ++i) RANK_CHECK(memory[i] == 0);
  });
}

TEST_CASE("dist: ddp trusts no zeros that other ranks do not have") {
  const OneThread one;
  on_ranks(2, [&](const Group& group) {
    DeadTaps net;
    DistributedDataParallel ddp(net.conv.named_parameters(), {}, group);
    for (int i = 0; i < 3; ++i) {
      RANK_CHECK(net.zeros_after_step(group->rank() == 0 ? 1 : 4).empty());
      // A corner tap: 9 pixels of rank 1 alone, halved.
      RANK_CHECK(values(grad(net.conv.weight))[0] == 4.5f);
    }
  });
}

TEST_CASE("dist: ddp names unused parameters, or finds them") {
  on_ranks(2, [](const Group& group) {
    nn::Linear a(3, 3), b(3, 3);
    const NamedTensors parameters{
        {"a.weight", a.weight}, {"a.bias", a.bias}, {"b.weight", b.weight}, {"b.bias", b.bias}};
    {
      DistributedDataParallel ddp(parameters, {}, group);
      RANK_CHECK_ERROR(backward(sum(a(full({1, 3}, 1)))),
                       "got no gradient for b.weight, b.bias; find_unused_parameters");
    }
    for (const Tensor& p : {a.weight, a.bias, b.weight, b.bias}) zero_grad(p);
    DistributedDataParallel ddp(parameters, {}, group, {.find_unused_parameters = true});
    // b by rank 1 alone.
    Tensor y = a(full({1, 3}, 1));
    if (group->rank() == 1) y = b(y);
    backward(sum(y));
    RANK_CHECK(values(grad(b.bias)) == std::vector<float>(3, 0.5f));
    // By none: it keeps no gradient, though its memory holds the last one.
    for (const Tensor& p : {a.weight, a.bias, b.weight, b.bias}) zero_grad(p);
    backward(sum(a(full({1, 3}, 1))));
    RANK_CHECK(!grad(b.bias).defined());
    RANK_CHECK(values(grad(a.bias)) == std::vector<float>(3, 1.0f));
  });
}

TEST_CASE("dist: ddp compares models and options") {
  on_ranks(2, [](const Group& group) {
    const bool first = group->rank() == 0;
    nn::Linear a(3, first ? 4 : 5);
    RANK_CHECK_ERROR(DistributedDataParallel(a.named_parameters(), {}, group),
                     "ddp: parameters and buffers must be the same on all ranks, got 'parameter "
                     "weight f32 [4, 3]' on rank 0 and 'parameter weight f32 [5, 3]' on rank 1");
    nn::Linear b(3, 4, {.bias = first});
    RANK_CHECK_ERROR(DistributedDataParallel(b.named_parameters(), {}, group),
                     "got 'parameter bias f32 [4]' on rank 0 and 'nothing' on rank 1");
    nn::Linear c(3, 4);
    RANK_CHECK_ERROR(
        DistributedDataParallel(c.named_parameters(), {}, group, {.broadcast_buffers = first}),
        "got 'broadcast_buffers true' on rank 0 and 'broadcast_buffers false' on rank 1");
    if (first) set_requires_grad(c.bias, false);
    RANK_CHECK_ERROR(DistributedDataParallel(c.named_parameters(), {}, group),
                     "'parameter bias f32 [4] frozen' on rank 0");
  });
  nn::Linear d(2, 2);
  CHECK_THROWS_WITH(
      DistributedDataParallel(d.named_parameters(), {}, local_group(), {.bucket_cap_mb = 0}),
      Contains("bucket_cap_mb must be above 0, got 0"));
}

TEST_CASE("dist: ddp broadcasts frozen parameters and buffers") {
  const OneThread one;
  const Data data = make_data(16);
  on_ranks(2, [&](const Group& group) {
    Net net(static_cast<uint64_t>(group->rank()), true);
    raw::fill_(net.norm->running_mean, group->rank() + 5);
    set_requires_grad(net.fc.bias, false);
    raw::fill_(net.fc.bias, group->rank() + 3);
    DistributedDataParallel ddp(net.named_parameters(), net.named_buffers(), group);
    RANK_CHECK(values(net.norm->running_mean) == std::vector<float>(4, 5.0f));
    RANK_CHECK(values(net.fc.bias) == std::vector<float>(10, 3.0f));
    // Ranks see different images, so only the broadcast makes their statistics equal.
    const Data mine = data.slice(group->rank() * 8, group->rank() * 8 + 8);
    backward(cross_entropy(net.forward(mine.images), mine.labels));
    const Tensor all = zeros({2, 4});
    group->all_gather(all, net.norm->running_var);
    RANK_CHECK(values(raw::select(all, 0, 0)) == values(raw::select(all, 0, 1)));
    RANK_CHECK(net.norm->num_batches_tracked.item<int64_t>() == 1);
    // A write into one buffer is no write into another.
    const uint32_t version = net.norm->running_var.version();
    net.norm->running_mean.bump_version("test");
    RANK_CHECK(net.norm->running_var.version() == version);
  });
}

TEST_CASE("dist: ddp compresses gradients to bf16") {
  const auto one = train(1, 5, {});
  const auto two = train(2, 5, {.gradient_compression = GradientCompression::bf16});
  CHECK(two[0].parameters == two[1].parameters);
  const double difference = largest_difference(one[0].parameters, two[0].parameters);
  CHECK(difference > 1e-6);
  CHECK(difference < 2e-2);
}

TEST_CASE("dist: ddp joins ranks with fewer steps") {
  const OneThread one;
  const Data data = make_data(32);
  for (const bool initial : {true, false}) {
    on_ranks(3, [&](const Group& group) {
      Net net(1, true);
      DistributedDataParallel ddp(net.named_parameters(), net.named_buffers(), group);
      optim::SGD optimizer(net.parameters(), {.lr = 0.1});
      std::vector<float> last;
      const auto body = [&] {
        for (int i = 0; i < 2 + group->rank(); ++i) {  // 2, 3 and 4 steps
          const Data mine = data.slice(8 * i, 8 * i + 8);
          optimizer.zero_grad();
          backward(cross_entropy(net.forward(mine.images), mine.labels));
          last = values(grad(net.fc.bias));
          optimizer.step();
        }
      };
      ddp.join(body, {.divide_by_initial_world_size = initial});
      // All have what rank 2 has.
      const Tensor all = zeros({3, net.fc.weight.numel()});
      group->all_gather(all, raw::flatten(net.fc.weight));
      RANK_CHECK(values(raw::select(all, 0, 0)) == values(raw::select(all, 0, 2)));
      const Tensor counts = zeros({3}, {DType::i64});
      group->all_gather(counts, raw::view(net.norm->num_batches_tracked, {1}));
      RANK_CHECK(counts.data<int64_t>()[0] == 4);
      // Alone at the end, its gradient is its own, or a third of it.
      if (group->rank() != 2) return;
      double largest = 0;
      for (float g : last) largest = std::max(largest, std::abs(static_cast<double>(g)));
      RANK_CHECK((initial ? largest < 0.2 : largest > 0.05));
      RANK_CHECK(ddp.steps() == 4);
    });
  }
}

TEST_CASE("dist: ddp's join can be an error instead") {
  std::vector<std::string> errors(2);
  on_ranks(2, [&](const Group& group) {
    nn::Linear net(2, 2);
    DistributedDataParallel ddp(net.named_parameters(), {}, group);
    const auto body = [&] {
      for (int i = 0; i < 3 + group->rank(); ++i) backward(sum(net(full({1, 2}, 1))));
    };
    try {
      ddp.join(body, {.throw_on_early_termination = true});
    } catch (const Error& error) {
      errors[static_cast<size_t>(group->rank())] = error.what();
    }
  });
  CHECK(errors[0] ==
        "join: all ranks must make the same number of steps, but rank 0 finished after "
        "3 steps and rank 1 makes one more");
  CHECK(errors[1] == errors[0]);
}

TEST_CASE("dist: a rank with one step fewer is an error that says so") {
  std::string error;
  on_ranks(2, [&](const Group& group) {
    nn::Linear net(2, 2);
    DistributedDataParallel ddp(net.named_parameters(), {}, group);
    for (int i = 0; i < 3 - group->rank(); ++i) {
      try {
        backward(sum(net(full({1, 2}, 1))));
      } catch (const CommError& e) {
        error = e.what();
      }
    }
  });
  CHECK_THAT(error, Contains("rank 1 finished after") && Contains("rank 0 waits in all_reduce #"));
}

TEST_CASE("dist: different calls of ranks are an error that lists them") {
  std::vector<std::string> errors(2);
  on_ranks(2, [&](const Group& group) {
    nn::Linear net(2, 2);
    DistributedDataParallel ddp(net.named_parameters(), {}, group);
    try {
      if (group->rank() == 0)
        backward(sum(net(full({1, 2}, 1))));
      else
        group->barrier();
    } catch (const CommError& e) {
      errors[static_cast<size_t>(group->rank())] = e.what();
    }
  });
  for (const std::string& error : errors)
    CHECK_THAT(error, Contains("rank 0: all_reduce #") && Contains("rank 1: barrier #"));
}

TEST_CASE("dist: a backward that throws leaves ddp ready for another") {
  on_ranks(2, [](const Group& group) {
    nn::Linear a(2, 2), b(2, 2);
    const NamedTensors parameters{{"a", a.weight}, {"b", b.weight}};
    set_requires_grad(a.bias, false);
    set_requires_grad(b.bias, false);
    DistributedDataParallel ddp(parameters, {}, group);
    const Tensor x = full({1, 2}, 1);
    const Tensor middle = a(x);
    const Tensor broken =
        record("broken", raw::clone(middle), {middle}, [](Grads&) { fail("broken: on purpose"); });
    RANK_CHECK_ERROR(backward(sum(b(broken))), "broken: on purpose");
    for (const Tensor& p : {a.weight, b.weight}) zero_grad(p);
    backward(sum(b(a(x))));
    RANK_CHECK(ddp.steps() == 1);
  });
}

TEST_CASE("dist: ddp notices gradients that moved away") {
  nn::Linear net(2, 2);
  DistributedDataParallel ddp(net.named_parameters(), {}, local_group());
  set_grad_memory(net.bias, zeros({2}));
  CHECK_THROWS_WITH(backward(sum(net(full({1, 2}, 1)))),
                    Contains("ddp: gradients must stay where they were") && Contains("bias"));
}

TEST_CASE("dist: an optimizer made before ddp, and hooks that outlive it") {
  const OneThread one;
  on_ranks(2, [](const Group& group) {
    nn::Linear net(2, 2);
    optim::SGD optimizer(net.parameters(), {.lr = 1});
    {
      DistributedDataParallel ddp(net.named_parameters(), {}, group);
      const double mine = group->rank() + 1;  // inputs 1 and 2: the mean gradient is 1.5
      const std::vector<float> before = values(net.weight);
      backward(sum(net(full({1, 2}, mine))));
      optimizer.step();
      RANK_CHECK(values(net.weight)[0] == before[0] - 1.5f);
    }
    const uint64_t calls = group->sequence();
    optimizer.zero_grad();
    backward(sum(net(full({1, 2}, 1))));
    RANK_CHECK(group->sequence() == calls);
  });
}
