"""What a job must compute at least: FLOPs on valid taps, and the parameters that ever move.

Invariant: a multiply-add counts 2, only for (output pixel, tap) pairs whose input pixel exists;
normalisation, activations and pooling are left out, so a fraction of the peak is never flattered.
"""

import dataclasses


@dataclasses.dataclass
class Work:
    """FLOPs of a forward pass and of a whole step (forward and both gradients), and parameters
    whose gradient is not always zero."""

    forward: float = 0.0
    step: float = 0.0
    live: int = 0

    def product(self, rows, inputs, outputs, data_gradient=True):
        """[rows, inputs] times weights [inputs, outputs], with a bias."""
        self._add(2.0 * rows * inputs * outputs, data_gradient)
        self.live += (inputs + 1) * outputs

    def convolution(self, batch, size, inputs, outputs, kernel, stride, data_gradient=True):
        """A square convolution padded by kernel // 2, with its batch norm; returns the new size."""
        pad = kernel // 2
        out = (size + 2 * pad - kernel) // stride + 1
        per_tap = [
            sum(0 <= o * stride + tap - pad < size for o in range(out)) for tap in range(kernel)
        ]
        pairs, taps = sum(per_tap) ** 2, sum(count > 0 for count in per_tap) ** 2
        self._add(2.0 * batch * pairs * inputs * outputs, data_gradient)
        self.live += taps * inputs * outputs + 2 * outputs
        return out

    def _add(self, flops, data_gradient):
        self.forward += flops
        self.step += flops * (3 if data_gradient else 2)


def resnet(depths, expansion, size, channels, batch):
    work = Work()
    size = work.convolution(batch, size, channels, 64, 7, 2, data_gradient=False)
    size, inputs = (size + 1) // 2, 64  # max pool
    for stage, depth in enumerate(depths):
        width = 64 << stage
        for block in range(depth):
            stride, outputs = 2 if stage and not block else 1, width * expansion
            if stride != 1 or inputs != outputs:
                work.convolution(batch, size, inputs, outputs, 1, stride)
            if expansion == 1:
                after = work.convolution(batch, size, inputs, width, 3, stride)
                work.convolution(batch, after, width, width, 3, 1)
            else:
                work.convolution(batch, size, inputs, width, 1, 1)
                after = work.convolution(batch, size, width, width, 3, stride)
                work.convolution(batch, after, width, outputs, 1, 1)
            size, inputs = after, outputs
    work.product(batch, inputs, 10)
    return work


def resnet18(size, channels, batch):
    return resnet((2, 2, 2, 2), 1, size, channels, batch)


def resnet50(size, channels, batch):
    return resnet((3, 4, 6, 3), 4, size, channels, batch)


def mlp(batch):
    work = Work()
    work.product(batch, 784, 1024, data_gradient=False)
    work.product(batch, 1024, 1024)
    work.product(batch, 1024, 10)
    return work


def transformer(tokens, batch, width=256, inner=1024, blocks=4):
    work = Work()
    rows = tokens * batch
    for _ in range(blocks):
        work.product(rows, width, 3 * width)
        work.product(rows, width, width)
        work.product(rows, width, inner)
        work.product(rows, inner, width)
        attention = 2 * 2.0 * rows * tokens * width  # scores, and weights times values
        work.forward += attention
        work.step += 3 * attention
        work.live += 4 * width  # two layer norms
    work.live += 2 * width
    work.product(batch, width, 10)
    return work
