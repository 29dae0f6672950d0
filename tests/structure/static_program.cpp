// One op of every kernel family, forward and backward, from a program that names no kernel. A
// kernel that the static link lost would be an error here.
#include <cmath>
#include <cstdio>
#include <exception>

#include "cairn/autograd/engine.h"
#include "cairn/autograd/ops/conv.h"
#include "cairn/autograd/ops/elementwise.h"
#include "cairn/autograd/ops/embedding.h"
#include "cairn/autograd/ops/indexing.h"
#include "cairn/autograd/ops/loss.h"
#include "cairn/autograd/ops/matmul.h"
#include "cairn/autograd/ops/norm.h"
#include "cairn/autograd/ops/pool.h"
#include "cairn/autograd/ops/reduce.h"
#include "cairn/optim/adam.h"
#include "cairn/optim/clip.h"
#include "cairn/tensor/random.h"

using namespace cairn;

namespace {

Tensor leaf(const Shape& shape) { return set_requires_grad(randn(shape)); }

double run() {
  manual_seed(1);
  const Tensor filter = leaf({4, 1, 3, 3});
  const Tensor scale = set_requires_grad(ones({4}));
  const Tensor shift = set_requires_grad(zeros({4}));
  const Tensor table = leaf({10, 16});
  const Tensor weight = leaf({5, 32});
  const Tensor classes = from_values(std::vector<int64_t>{0, 4}, {2});

  Tensor x = conv2d(randn({2, 1, 8, 8}), filter, {}, {.padding = 1});
  x = batch_norm(x, zeros({4}), ones({4}), scale, shift, {.training = true});
  x = max_pool2d(relu(x), {.kernel_size = 2});
  x = flatten(avg_pool2d(x, {.kernel_size = 2}), 1);
  x = cat({layer_norm(x, {16}), embedding(table, classes)}, 1);
  x = dropout(softmax(linear(x, weight), 1), 0.1);
  x = gather(x, 1, topk(x, 5, 1).second);
  const Tensor loss = add(cross_entropy(x, classes), mean(matmul(x, transpose(x, 0, 1))));
  backward(loss);

  const std::vector<Tensor> parameters{filter, scale, shift, table, weight};
  optim::clip_grad_norm_(parameters, 1.0);
  optim::Adam adam(parameters, {.lr = 1e-2});
  adam.step();
  return loss.item();
}

}  // namespace

int main() {
  try {
    const double loss = run();
    std::printf("loss %g\n", loss);
    return std::isfinite(loss) ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
