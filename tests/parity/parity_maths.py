"""Cases of reductions and moves.

Invariant: as in parity_layers.py; an unspecified choice (the index of a tie in topk) is never
pinned.
"""

import torch

INF = float("inf")
NAN = float("nan")


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def reductions(f):
    def case(op, name, x, dim, keepdim, function, extra=None, outputs=("y",), grad=True):
        f.add(
            name,
            op,
            lambda x: function(x),
            {"x": x},
            {"dim": dim, "keepdim": keepdim, **(extra or {})},
            outputs,
            grad=grad,
        )

    plans = (
        ("all", None, False),
        ("last", (-1,), False),
        ("first_keep", (0,), True),
        ("middle", (1,), False),
        ("two", (0, 2), False),
        ("two_keep", (1, 2), True),
    )
    simple = {
        "sum": torch.sum,
        "mean": torch.mean,
        "amax": torch.amax,
        "amin": torch.amin,
        "logsumexp": torch.logsumexp,
    }
    for op, function in simple.items():
        for name, dim, keepdim in plans:
            if op == "logsumexp" and dim is None:
                continue
            axes = dim if dim is not None else (() if op in ("amax", "amin") else None)
            case(
                op,
                name,
                f.fill(3, 4, 2),
                dim,
                keepdim,
                lambda x, g=function, d=axes, k=keepdim: g(x, dim=d, keepdim=k),
            )
    for op in ("amax", "amin"):
        case(
            op,
            "ties_share_the_gradient",
            tensor([[2.0, 1.0, 2.0], [1.0, 1.0, 1.0]]),
            (1,),
            False,
            lambda x, g=simple[op]: g(x, dim=1),
        )
        case(
            op,
            "nan",
            tensor([[2.0, NAN, 3.0], [1.0, -INF, INF]]),
            (1,),
            False,
            lambda x, g=simple[op]: g(x, dim=1),
            grad=False,
        )
    for op, function in (("var", torch.var), ("std", torch.std)):
        for unbiased in (True, False):
            for name, dim, keepdim in plans:
                case(
                    op,
                    f"{name}_{'unbiased' if unbiased else 'biased'}",
                    f.fill(3, 4, 2, shift=2.0),
                    dim,
                    keepdim,
                    lambda x, g=function, d=dim, k=keepdim, u=unbiased: g(
                        x, dim=d, keepdim=k, unbiased=u
                    ),
                    {"unbiased": unbiased},
                )
        case(
            op,
            "constant_row",
            torch.full((2, 3), 1.5, dtype=torch.float64),
            (1,),
            False,
            lambda x, g=function: g(x, dim=1),
            {"unbiased": True},
        )
        case(
            op,
            "one_element_unbiased_is_nan",
            f.fill(3, 1),
            (1,),
            False,
            lambda x, g=function: g(x, dim=1),
            {"unbiased": True},
            grad=False,
        )
    case("prod", "all", f.fill(2, 3, shift=1.0), None, False, lambda x: torch.prod(x))
    case("prod", "last", f.fill(2, 3), (-1,), False, lambda x: torch.prod(x, dim=-1))
    case(
        "prod", "first_keep", f.fill(3, 2), (0,), True, lambda x: torch.prod(x, dim=0, keepdim=True)
    )
    zeros = tensor([[2.0, 0.0, 3.0], [0.0, 4.0, 0.0], [1.0, 2.0, 3.0]])
    case("prod", "zeros", zeros, (1,), False, lambda x: torch.prod(x, dim=1))
    case("prod", "one_zero_in_all", tensor([2.0, 0.0, 3.0]), None, False, lambda x: torch.prod(x))
    case(
        "logsumexp",
        "large",
        tensor([[1000.0, 1000.0], [-1000.0, -1001.0]]),
        (1,),
        False,
        lambda x: torch.logsumexp(x, dim=1),
    )
    case(
        "logsumexp",
        "infinities",
        tensor([[-INF, -INF], [INF, 1.0]]),
        (1,),
        False,
        lambda x: torch.logsumexp(x, dim=1),
        grad=False,
    )
    for name, dim in (("first", 0), ("last", -1)):
        f.add(
            name,
            "cumsum",
            lambda x, d=dim: torch.cumsum(x, dim=d),
            {"x": f.fill(3, 4)},
            {"dim": dim},
        )
    ties = tensor([[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0], [-1.0, -INF, 0.0, 0.0]])
    nans = tensor([[1.0, NAN, 3.0, NAN]])
    for op, function in (("argmax", torch.argmax), ("argmin", torch.argmin)):
        for name, x, dim, keepdim in (
            ("ties_first_wins", ties, 1, False),
            ("first_dim_keep", ties, 0, True),
            ("all", ties, None, False),
            ("nan_wins", nans, 1, False),
        ):
            case(
                op,
                name,
                x,
                dim,
                keepdim,
                lambda x, g=function, d=dim, k=keepdim: g(x, dim=d, keepdim=k),
                grad=False,
            )
    case("sum", "empty_is_zero", f.fill(2, 0), (1,), False, lambda x: torch.sum(x, dim=1))
    case(
        "mean",
        "empty_is_nan",
        f.fill(2, 0),
        (1,),
        False,
        lambda x: torch.mean(x, dim=1),
        grad=False,
    )
    case(
        "prod",
        "empty_is_one",
        f.fill(2, 0),
        (1,),
        False,
        lambda x: torch.prod(x, dim=1),
        grad=False,
    )
    case("sum", "zero_dim", f.fill(), None, False, lambda x: torch.sum(x))


def moves(f):
    condition = torch.tensor([[True], [False]])
    f.add(
        "same_shape",
        "where",
        lambda condition, a, b: torch.where(condition, a, b),
        {
            "condition": torch.tensor([[True, False], [False, True]]),
            "a": f.fill(2, 2),
            "b": f.fill(2, 2),
        },
    )
    f.add(
        "broadcast_all",
        "where",
        lambda condition, a, b: torch.where(condition, a, b),
        {"condition": condition, "a": f.fill(3), "b": f.fill(2, 2, 1)},
    )
    f.add(
        "zero_dim_branch",
        "where",
        lambda condition, a, b: torch.where(condition, a, b),
        {"condition": condition, "a": f.fill(), "b": f.fill(2, 3)},
    )
    index = torch.tensor([[0, 2, 2], [1, 1, 0]])
    f.add(
        "last_repeats",
        "gather",
        lambda x, index: torch.gather(x, 1, index),
        {"x": f.fill(2, 4), "index": index},
        {"dim": 1},
    )
    f.add(
        "first_smaller_index",
        "gather",
        lambda x, index: torch.gather(x, 0, index),
        {"x": f.fill(3, 4), "index": index},
        {"dim": 0},
    )
    for name, dim in (("first", 0), ("middle", 1), ("last", -1)):
        f.add(
            f"{name}_repeats",
            "index_select",
            lambda x, index, d=dim: torch.index_select(x, d, index),
            {"x": f.fill(2, 2, 3), "index": torch.tensor([1, 0, 1])},
            {"dim": dim},
        )
    f.add(
        "no_index",
        "index_select",
        lambda x, index: torch.index_select(x, 0, index),
        {"x": f.fill(2, 3), "index": torch.zeros(0, dtype=torch.int64)},
        {"dim": 0},
    )

    def cat(d):
        return lambda x0, x1, x2: torch.cat([x0, x1, x2], dim=d)

    f.add(
        "first",
        "cat",
        cat(0),
        {"x0": f.fill(2, 3), "x1": f.fill(1, 3), "x2": f.fill(3, 3)},
        {"dim": 0},
    )
    f.add(
        "last_one_empty",
        "cat",
        cat(-1),
        {"x0": f.fill(2, 1), "x1": f.fill(2, 0), "x2": f.fill(2, 2)},
        {"dim": -1},
    )
    for dim in (0, 1, -1):
        f.add(
            f"dim{dim}",
            "stack",
            lambda x0, x1, d=dim: torch.stack([x0, x1], dim=d),
            {"x0": f.fill(2, 3), "x1": f.fill(2, 3)},
            {"dim": dim},
        )
    for name, k, dim, largest in (
        ("largest", 2, -1, True),
        ("smallest", 3, 1, False),
        ("first_dim", 1, 0, True),
        ("all_sorted", 5, 1, True),
    ):
        f.add(
            name,
            "topk",
            lambda x, k=k, d=dim, big=largest: torch.topk(x, k, dim=d, largest=big, sorted=True),
            {"x": f.fill(3, 5)},
            {"k": k, "dim": dim, "largest": largest, "sorted": True},
            ("values", "indices"),
        )
    f.add(
        "nan_is_largest",
        "topk",
        lambda x: torch.topk(x, 2),
        {"x": tensor([1.0, NAN, INF, -INF])},
        {"k": 2, "dim": -1, "largest": True, "sorted": True},
        ("values", "indices"),
        grad=False,
    )
    for name, x, dim, descending, grad in (
        ("ascending", f.fill(3, 5), -1, False, True),
        ("descending", f.fill(3, 5), 0, True, True),
        ("stable_ties", tensor([2.0, 1.0, 2.0, 1.0, 3.0, 1.0]), 0, False, True),
        ("stable_ties_descending", tensor([2.0, 1.0, 2.0, 1.0, 3.0, 1.0]), 0, True, True),
        ("nan_last", tensor([2.0, NAN, -INF, INF]), 0, False, False),
        ("nan_first_descending", tensor([2.0, NAN, -INF, INF]), 0, True, False),
    ):
        f.add(
            name,
            "sort",
            lambda x, d=dim, e=descending: torch.sort(x, dim=d, descending=e, stable=True),
            {"x": x},
            {"dim": dim, "descending": descending, "stable": True},
            ("values", "indices"),
            grad=grad,
        )
    f.add(
        "3d", "permute", lambda x: x.permute(2, 0, 1), {"x": f.fill(2, 3, 4)}, {"dims": (2, 0, 1)}
    )
    f.add(
        "swap",
        "transpose",
        lambda x: x.transpose(0, -1),
        {"x": f.fill(2, 3, 4)},
        {"dim0": 0, "dim1": -1},
    )
    f.add(
        "new_and_old",
        "expand",
        lambda x: x.expand(2, 3, 4),
        {"x": f.fill(3, 1)},
        {"size": (2, 3, 4)},
    )
    f.add(
        "of_transposed",
        "transpose_reshape",
        lambda x: x.t().reshape(2, 6),
        {"x": f.fill(3, 4)},
        {"shape": (2, 6)},
    )
    f.add(
        "step2",
        "slice",
        lambda x: x[:, 1:6:2],
        {"x": f.fill(2, 7)},
        {"dim": 1, "start": 1, "end": 6, "step": 2},
    )
    f.add("row", "select", lambda x: x.select(1, -1), {"x": f.fill(2, 3)}, {"dim": 1, "index": -1})
    f.add(
        "middle",
        "flatten",
        lambda x: x.flatten(1, 2),
        {"x": f.fill(2, 3, 2, 2)},
        {"start_dim": 1, "end_dim": 2},
    )
