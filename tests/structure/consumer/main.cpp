// Fits y = 2x - 1 with the installed package; status 0 when it is learnt.
#include <cairn/cairn.h>

#include <cstdio>

using namespace cairn;

struct Line : nn::Module {
  nn::Linear unit{child("unit"), 1, 1};
  Tensor forward(const Tensor& x) { return unit(x); }
};

int main() {
  manual_seed(0);
  Line model;
  optim::SGD optimizer(model.parameters(), {.lr = 0.1});
  const Tensor x = raw::view(linspace(-1, 1, 32), {32, 1});
  const Tensor y = sub(mul(x, 2.0), 1.0);
  double last = 0;
  for (int step = 0; step < 200; ++step) {
    optimizer.zero_grad();
    const Tensor loss = mse_loss(model.forward(x), y);
    backward(loss);
    optimizer.step();
    last = loss.item();
  }
  std::printf("loss %g\n", last);
  return last < 1e-6 ? 0 : 1;
}
