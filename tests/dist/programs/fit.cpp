// Twenty steps of a small network over batches of 128, of which each rank takes its part: one
// process and several must come to the same parameters. Argument: a folder; each rank writes its
// parameters there, as floats, to a file that is called by its rank.
#include <cstdio>
#include <fstream>
#include <string>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/indexing.h"
#include "cairn/autograd/ops/loss.h"
#include "cairn/dist/ddp.h"
#include "cairn/dist/failure_report.h"
#include "cairn/dist/init.h"
#include "cairn/nn/conv.h"
#include "cairn/nn/linear.h"
#include "cairn/optim/adam.h"
#include "cairn/tensor/factory.h"
#include "cairn/tensor/random.h"
#include "cairn/tensor/raw.h"

namespace {

using namespace cairn;

constexpr int kSteps = 20, kBatch = 128;

struct Net : nn::Module {
  explicit Net(int rank) {
    Generator generator(static_cast<uint64_t>(rank));  // rank 0's weights are those of all
    for (const auto& [name, p] : named_parameters())
      raw::copy_(p, mul(randn(p.shape(), {}, generator), 0.1));
  }
  Tensor forward(const Tensor& x) { return fc(flatten(relu(conv(x)), 1)); }
  nn::Conv2d conv{child("conv"), 1, 8, 3, {.padding = 1}};
  nn::Linear fc{child("fc"), 8 * 8 * 8, 10};
};

void run(const std::string& folder) {
  const dist::ClusterEnvironment e = dist::detect_environment();
  Net net(e.rank);
  const auto group = dist::init_process_group(e);
  dist::DistributedDataParallel ddp(net.named_parameters(), net.named_buffers(), group);
  const auto optimizer = optim::adam(net.parameters(), {.lr = 1e-3});
  Generator generator(7);
  const int share = kBatch / e.world_size;
  for (int step = 0; step < kSteps; ++step) {
    const Tensor images = randn({kBatch, 1, 8, 8}, {}, generator);
    const Tensor labels = randint(0, 10, {kBatch}, {.dtype = DType::i64}, generator);
    const int64_t begin = e.rank * share;
    optimizer->zero_grad();
    backward(cross_entropy(net.forward(raw::slice(images, 0, begin, begin + share)),
                           raw::slice(labels, 0, begin, begin + share)));
    optimizer->step();
  }
  std::ofstream out(folder + "/" + std::to_string(e.rank), std::ios::binary);
  for (const auto& [name, p] : net.named_parameters()) {
    const Tensor whole = raw::contiguous(p);
    out.write(static_cast<const char*>(whole.raw_data()), whole.nbytes());
  }
  check(static_cast<bool>(out.flush()), "fit: the parameters must be written to ", folder);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    check(argc == 2, "fit: one folder must be given, got ", argc - 1, " arguments");
    run(argv[1]);
    return 0;
  } catch (const std::exception& error) {
    dist::report_failure(error);
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
