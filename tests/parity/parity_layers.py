"""Cases of the layer operators: convolution, pooling, normalisation, linear, activations,
embedding, losses.

Invariant: each case is named for the corner it pins, and `attrs` spells out every option, defaults
included.
"""

import torch
import torch.nn.functional as F
from torch import nn

INF = float("inf")
NAN = float("nan")


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def convolutions(f):
    def case(name, x, w, bias=True, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
        inputs = {"x": f.fill(*x), "weight": f.fill(*w)}
        if bias:
            inputs["bias"] = f.fill(w[0])
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        f.add(
            name,
            "conv2d",
            lambda x, weight, bias=None: F.conv2d(x, weight, bias, **options),
            inputs,
            options,
        )

    case("plain_3x3", (2, 3, 6, 5), (4, 3, 3, 3))
    case("stride2_odd_size", (2, 3, 7, 9), (4, 3, 3, 3), stride=(2, 2), padding=(1, 1))
    case("stride2_last_column_unused", (1, 2, 8, 6), (3, 2, 3, 3), stride=(2, 2), bias=False)
    case("dilation2", (2, 2, 9, 8), (3, 2, 3, 3), dilation=(2, 2), padding=(2, 2))
    case(
        "dilation_and_stride_differ",
        (1, 2, 10, 9),
        (2, 2, 3, 2),
        stride=(1, 3),
        dilation=(3, 2),
        padding=(2, 1),
    )
    case("groups2", (2, 4, 5, 5), (6, 2, 3, 3), groups=2, padding=(1, 1))
    case("depthwise", (2, 4, 6, 6), (4, 1, 3, 3), groups=4, padding=(1, 1), stride=(2, 2))
    case("depthwise_multiplier2", (1, 3, 5, 5), (6, 1, 3, 3), groups=3, bias=False)
    case("padding_larger_than_needed", (2, 2, 3, 3), (3, 2, 3, 3), padding=(4, 3))
    case(
        "only_padding_in_some_windows",
        (1, 2, 2, 2),
        (2, 2, 3, 3),
        padding=(3, 3),
        stride=(2, 2),
        bias=False,
    )
    case("kernel_larger_than_input", (3, 4, 1, 1), (5, 4, 3, 3), padding=(1, 1), bias=False)
    case("pointwise", (2, 5, 4, 3), (6, 5, 1, 1), bias=False)
    case("pointwise_stride2", (2, 3, 7, 5), (4, 3, 1, 1), stride=(2, 2), bias=False)
    case("pointwise_padded", (1, 2, 3, 3), (2, 2, 1, 1), padding=(1, 1))
    case("batch1", (1, 3, 5, 5), (2, 3, 3, 3), padding=(1, 1))
    case("kernel_3x5", (2, 2, 6, 8), (3, 2, 3, 5), padding=(1, 2), bias=False)
    case("kernel_1x4_even", (2, 2, 4, 7), (3, 2, 1, 4), padding=(0, 2), stride=(1, 2))
    case("stem_7x7", (2, 1, 14, 14), (4, 1, 7, 7), stride=(2, 2), padding=(3, 3), bias=False)
    case("one_output_pixel", (2, 3, 3, 4), (2, 3, 3, 4))
    case("empty_batch", (0, 2, 4, 4), (3, 2, 3, 3))


def pooling(f):
    def max_pool(name, x, kernel, stride, padding=(0, 0), dilation=(1, 1), grad=True):
        options = {
            "kernel_size": kernel,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
        }
        f.add(
            name,
            "max_pool2d",
            lambda x: F.max_pool2d(x, **options, return_indices=True),
            {"x": x},
            options,
            outputs=("y", "indices"),
            grad=grad,
        )

    max_pool("plain", f.fill(2, 3, 6, 6), (2, 2), (2, 2))
    max_pool("ties", f.integers(2, 2, 6, 7, high=3), (3, 3), (2, 2), (1, 1))
    max_pool(
        "all_equal_overlapping",
        torch.zeros(1, 1, 5, 5, dtype=torch.float64),
        (3, 3),
        (1, 1),
        (1, 1),
    )
    max_pool("stem_3x3_s2_p1_odd", f.fill(2, 2, 7, 9), (3, 3), (2, 2), (1, 1))
    max_pool("all_negative_padded", f.fill(1, 2, 4, 4, shift=-5), (3, 3), (2, 2), (1, 1))
    max_pool("dilation2", f.integers(1, 2, 8, 7, high=5), (2, 3), (1, 2), (1, 1), (2, 2))
    max_pool("kernel_2x3_stride_3x1", f.fill(1, 2, 7, 5), (2, 3), (3, 1))
    x = f.fill(1, 1, 4, 4)
    x[0, 0, 1, 2] = NAN
    x[0, 0, 3, 0] = -INF
    max_pool("nan_wins", x, (2, 2), (1, 1), grad=False)
    max_pool(
        "minus_infinity_everywhere",
        torch.full((1, 1, 3, 3), -INF, dtype=torch.float64),
        (3, 3),
        (2, 2),
        (1, 1),
        grad=False,
    )

    def avg_pool(name, x, kernel, stride, padding=(0, 0), count_include_pad=True):
        options = {
            "kernel_size": kernel,
            "stride": stride,
            "padding": padding,
            "count_include_pad": count_include_pad,
        }
        f.add(name, "avg_pool2d", lambda x: F.avg_pool2d(x, **options), {"x": x}, options)

    avg_pool("plain", f.fill(2, 2, 6, 4), (2, 2), (2, 2))
    avg_pool("padding_counted", f.fill(2, 2, 5, 7), (3, 3), (2, 2), (1, 1), True)
    avg_pool("padding_not_counted", f.fill(2, 2, 5, 7), (3, 3), (2, 2), (1, 1), False)
    avg_pool("overlapping_3x2", f.fill(1, 2, 6, 5), (3, 2), (1, 2), (1, 0), False)

    def adaptive(name, x, size):
        f.add(
            name,
            "adaptive_avg_pool2d",
            lambda x: F.adaptive_avg_pool2d(x, size),
            {"x": x},
            {"output_size": size},
        )

    adaptive("uneven_7_to_3", f.fill(2, 2, 7, 7), (3, 3))
    adaptive("to_one", f.fill(2, 3, 5, 5), (1, 1))
    adaptive("to_larger", f.fill(1, 2, 3, 2), (5, 4))
    adaptive("uneven_5x8_to_2x3", f.fill(1, 2, 5, 8), (2, 3))
    adaptive("identity", f.fill(1, 2, 3, 3), (3, 3))


def normalisation(f):
    def batch_norm(
        name,
        shape,
        affine=True,
        training=True,
        momentum=0.1,
        tracked=0,
        eps=1e-5,
        stats=True,
        scale=1.0,
        shift=0.0,
    ):
        channels = shape[1]
        inputs = {"x": f.fill(*shape, scale=scale, shift=shift)}
        if affine:
            inputs["weight"] = f.fill(channels, shift=1.0)
            inputs["bias"] = f.fill(channels)
        if stats:
            inputs["running_mean"] = f.fill(channels)
            inputs["running_var"] = f.fill(channels, scale=0.5, shift=1.0)
        make = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]

        def run(x, weight=None, bias=None, running_mean=None, running_var=None):
            module = make(
                channels, eps=eps, momentum=momentum, affine=affine, track_running_stats=stats
            ).double()
            module.train(training)
            if affine:  # plain attributes, so that the gradients reach the case's own tensors
                del module.weight, module.bias
                module.weight, module.bias = weight, bias
            if stats:
                module.running_mean.copy_(running_mean)
                module.running_var.copy_(running_var)
                module.num_batches_tracked.fill_(tracked)
            y = module(x)
            if not stats:
                return y
            return y, module.running_mean, module.running_var, module.num_batches_tracked

        outputs = ("y", "running_mean", "running_var", "num_batches_tracked") if stats else ("y",)
        f.add(
            name,
            "batch_norm",
            run,
            inputs,
            {
                "training": training,
                "momentum": momentum,
                "eps": eps,
                "num_batches_tracked": tracked,
            },
            outputs,
            constant=("running_mean", "running_var"),
        )

    batch_norm("train", (4, 3, 3, 2))
    batch_norm("train_no_affine", (3, 2, 2, 3), affine=False)
    batch_norm("train_cumulative_first", (3, 2, 2, 2), momentum=None, tracked=0)
    batch_norm("train_cumulative_fourth", (3, 2, 2, 2), momentum=None, tracked=3)
    batch_norm("train_momentum_half", (2, 3, 2, 2), momentum=0.5, tracked=7)
    batch_norm("train_batch1", (1, 3, 3, 3))
    batch_norm("train_one_pixel", (5, 3, 1, 1))
    batch_norm("train_far_from_zero", (4, 2, 3, 3), scale=0.125, shift=64.0)
    batch_norm("train_large_eps", (3, 2, 2, 2), eps=0.25)
    batch_norm("train_no_running_stats", (3, 2, 2, 2), stats=False)
    batch_norm("train_2d_input", (6, 4))
    batch_norm("train_3d_input", (2, 3, 5))
    batch_norm("eval", (3, 3, 2, 2), training=False)
    batch_norm("eval_no_affine", (2, 2, 2, 2), training=False, affine=False)
    batch_norm("eval_batch1_one_pixel", (1, 3, 1, 1), training=False)
    batch_norm("eval_no_running_stats", (3, 2, 2, 2), training=False, stats=False)

    def layer_norm(name, x, shape, affine=True, bias=True, eps=1e-5):
        inputs = {"x": x}
        if affine:
            inputs["weight"] = f.fill(*shape, shift=1.0)
        if affine and bias:
            inputs["bias"] = f.fill(*shape)
        f.add(
            name,
            "layer_norm",
            lambda x, weight=None, bias=None: F.layer_norm(x, shape, weight, bias, eps),
            inputs,
            {"normalized_shape": shape, "eps": eps},
        )

    layer_norm("last_dim", f.fill(3, 4, 7), (7,))
    layer_norm("two_dims", f.fill(2, 3, 4), (3, 4))
    layer_norm("whole_tensor", f.fill(3, 4), (3, 4))
    layer_norm("no_affine", f.fill(2, 5), (5,), affine=False)
    layer_norm("no_bias", f.fill(2, 5), (5,), bias=False)
    layer_norm("one_row", f.fill(9), (9,))
    layer_norm("constant_row", torch.full((2, 4), 3.0, dtype=torch.float64), (4,))
    layer_norm("width_one", f.fill(3, 1), (1,), eps=0.01)


def products(f):
    def linear(name, x, out, bias=True):
        inputs = {"x": f.fill(*x), "weight": f.fill(out, x[-1])}
        if bias:
            inputs["bias"] = f.fill(out)
        f.add(name, "linear", lambda x, weight, bias=None: F.linear(x, weight, bias), inputs)

    linear("bias", (3, 4), 5)
    linear("no_bias", (3, 4), 2, bias=False)
    linear("one_dim", (4,), 3)
    linear("three_dims", (2, 3, 4), 5)
    linear("one_output", (4, 3), 1)
    linear("empty_batch", (0, 3), 2)

    def matmul(name, a, b):
        f.add(name, "matmul", lambda a, b: torch.matmul(a, b), {"a": f.fill(*a), "b": f.fill(*b)})

    matmul("matrices", (3, 4), (4, 5))
    matmul("dot", (5,), (5,))
    matmul("matrix_vector", (3, 4), (4,))
    matmul("vector_matrix", (3,), (3, 4))
    matmul("batched", (3, 2, 4), (3, 4, 2))
    matmul("batched_by_matrix", (2, 3, 4), (4, 5))
    matmul("matrix_by_batched", (3, 4), (2, 4, 5))
    matmul("broadcast_both", (2, 1, 3, 4), (3, 4, 2))
    matmul("broadcast_crossed", (2, 1, 2, 3), (1, 4, 3, 2))
    matmul("batched_by_vector", (2, 3, 4), (4,))
    matmul("vector_by_batched", (3,), (2, 3, 4))
    matmul("inner_size_zero", (2, 0), (0, 3))
    matmul("batch_size_zero", (0, 2, 3), (3, 2))
    f.add(
        "transposed_views",
        "matmul_tt",
        lambda a, b: torch.matmul(a.t(), b.t()),
        {"a": f.fill(4, 3), "b": f.fill(5, 4)},
    )


def feed_forward_blocks(f):
    """Two linear layers with an activation between; its name is not PyTorch's."""
    functions = {"relu": F.relu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}
    for activation, function in functions.items():
        for name, x, width, out, biases in (
            ("biases", (3, 4), 8, 5, True),
            ("no_biases_3d", (2, 3, 4), 7, 4, False),
        ):
            inputs = {"x": f.fill(*x), "weight1": f.fill(width, x[-1]), "weight2": f.fill(out, width)}
            if biases:
                inputs |= {"bias1": f.fill(width), "bias2": f.fill(out)}

            def run(x, weight1, weight2, bias1=None, bias2=None, g=function):
                return F.linear(g(F.linear(x, weight1, bias1)), weight2, bias2)

            attrs = {"activation": activation}
            f.add(f"{activation}_{name}", "feed_forward", run, inputs, attrs)


def activations(f):
    wide = tensor([[-1000.0, -20.0, -3.0, -1.0, -0.5, -0.0], [0.0, 0.25, 1.0, 2.5, 20.0, 1000.0]])
    functions = {
        "relu": ({}, F.relu),
        "silu": ({}, F.silu),
        "sigmoid": ({}, torch.sigmoid),
        "tanh": ({}, torch.tanh),
    }
    for op, (attrs, function) in functions.items():
        f.add("random", op, lambda x, g=function: g(x), {"x": f.fill(3, 5, scale=3.0)}, attrs)
        f.add("corners", op, lambda x, g=function: g(x), {"x": wide}, attrs)
    for approximate in ("none", "tanh"):
        run = lambda x, a=approximate: F.gelu(x, approximate=a)
        f.add(
            f"random_{approximate}",
            "gelu",
            run,
            {"x": f.fill(3, 5, scale=3.0)},
            {"approximate": approximate},
        )
        f.add(f"corners_{approximate}", "gelu", run, {"x": wide}, {"approximate": approximate})
    for slope, name in ((0.01, "default"), (0.25, "quarter"), (0.0, "zero")):
        f.add(
            name,
            "leaky_relu",
            lambda x, s=slope: F.leaky_relu(x, s),
            {"x": wide},
            {"negative_slope": slope},
        )
    for op, function in (("softmax", F.softmax), ("log_softmax", F.log_softmax)):
        for dim, name in ((0, "first"), (1, "middle"), (-1, "last")):
            f.add(
                f"dim_{name}",
                op,
                lambda x, g=function, d=dim: g(x, dim=d),
                {"x": f.fill(3, 4, 2, scale=4.0)},
                {"dim": dim},
            )
        large = tensor(
            [[1000.0, 999.0, -1000.0], [-1000.0, -1000.0, -1001.0], [1000.0, 1000.0, 1000.0]]
        )
        f.add("large_values", op, lambda x, g=function: g(x, dim=-1), {"x": large}, {"dim": -1})
        f.add("size_one", op, lambda x, g=function: g(x, dim=1), {"x": f.fill(3, 1)}, {"dim": 1})
        f.add(
            "minus_infinity_entry",
            op,
            lambda x, g=function: g(x, dim=0),
            {"x": tensor([0.5, -INF, 1.5])},
            {"dim": 0},
            grad=False,
        )
    for p in (0.5, 1.0):
        f.add(
            f"eval_p{p}",
            "dropout",
            lambda x, p=p: F.dropout(x, p, training=False),
            {"x": f.fill(2, 3)},
            {"p": p, "training": False},
        )
    f.add(
        "train_p0",
        "dropout",
        lambda x: F.dropout(x, 0.0, training=True),
        {"x": f.fill(2, 3)},
        {"p": 0.0, "training": True},
    )
    f.add(
        "train_p1",
        "dropout",
        lambda x: F.dropout(x, 1.0, training=True),
        {"x": f.fill(2, 3)},
        {"p": 1.0, "training": True},
    )


def embeddings(f):
    def case(name, indices, padding_idx=None):
        options = {"padding_idx": padding_idx}
        f.add(
            name,
            "embedding",
            lambda indices, weight: F.embedding(indices, weight, **options),
            {"indices": torch.tensor(indices), "weight": f.fill(5, 3)},
            options,
        )

    case("repeats", [[0, 2, 2], [4, 2, 0]])
    case("padding_idx", [[1, 0, 1], [3, 1, 4]], padding_idx=1)
    case("padding_idx_negative", [4, 4, 0, 2], padding_idx=-1)
    case("scalar_index", 3)
    case("all_the_same", [2, 2, 2, 2])
