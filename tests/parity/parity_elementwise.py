"""Cases of elementwise maths with one and two operands.

Invariant: as in parity_layers.py; "special" cases hold zeros, infinities and NaN and have no
gradients.
"""

import torch

INF = float("inf")
NAN = float("nan")


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def unary(f):
    anywhere = dict(scale=2.0)
    positive = dict(scale=0.875, shift=1.0)
    plain = {
        "exp": (torch.exp, anywhere),
        "log": (torch.log, positive),
        "sqrt": (torch.sqrt, positive),
        "rsqrt": (torch.rsqrt, positive),
        "abs": (torch.abs, anywhere),
        "neg": (torch.neg, anywhere),
        "square": (torch.square, anywhere),
        "reciprocal": (torch.reciprocal, positive),
        "sin": (torch.sin, anywhere),
        "cos": (torch.cos, anywhere),
        "erf": (torch.erf, anywhere),
        "log1p": (torch.log1p, positive),
        "expm1": (torch.expm1, anywhere),
        "log2": (torch.log2, positive),
        "floor": (torch.floor, anywhere),
        "ceil": (torch.ceil, anywhere),
        "round": (torch.round, anywhere),
        "sign": (torch.sign, anywhere),
    }
    special = tensor([0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -2.5, 700.0, -800.0, INF, -INF, NAN])
    for op, (function, domain) in plain.items():
        f.add("random", op, lambda x, g=function: g(x), {"x": f.fill(2, 6, **domain)})
        f.add("special", op, lambda x, g=function: g(x), {"x": special}, grad=False)
    f.add("zero_has_no_slope", "abs", lambda x: torch.abs(x), {"x": tensor([0.0, -0.0, -2.0])})
    f.add(
        "small_arguments",
        "expm1",
        lambda x: torch.expm1(x),
        {"x": tensor([2.0**-40, -(2.0**-30), 0.0])},
    )
    f.add(
        "small_arguments",
        "log1p",
        lambda x: torch.log1p(x),
        {"x": tensor([2.0**-40, -(2.0**-30), 0.0])},
    )
    for name, exponent in (
        ("2", 2.0),
        ("3", 3.0),
        ("half", 0.5),
        ("minus1", -1.0),
        ("zero", 0.0),
        ("1_5", 1.5),
    ):
        f.add(
            f"scalar_{name}",
            "pow_scalar",
            lambda x, e=exponent: torch.pow(x, e),
            {"x": f.fill(2, 4, **positive)},
            {"exponent": exponent},
        )
    f.add(
        "scalar_2_at_zero_and_negative",
        "pow_scalar",
        lambda x: torch.pow(x, 2.0),
        {"x": tensor([0.0, -3.0, 2.0])},
        {"exponent": 2.0},
    )
    f.add(
        "scalar_0_at_zero",
        "pow_scalar",
        lambda x: torch.pow(x, 0.0),
        {"x": tensor([0.0, -3.0, 2.0])},
        {"exponent": 0.0},
    )
    x = tensor([-2.0, -1.0, -0.5, 0.5, 1.0, 3.0])
    for name, low, high in (
        ("both", -1.0, 1.0),
        ("min_only", -1.0, None),
        ("max_only", None, 1.0),
        ("crossed_max_wins", 1.0, -1.0),
    ):
        f.add(
            name,
            "clamp",
            lambda x, a=low, b=high: torch.clamp(x, a, b),
            {"x": x},
            {"min": low, "max": high},
        )
    f.add(
        "nan_stays",
        "clamp",
        lambda x: torch.clamp(x, 0.0, 1.0),
        {"x": tensor([NAN, INF, -INF])},
        {"min": 0.0, "max": 1.0},
        grad=False,
    )


def binary(f):
    functions = {
        "add": torch.add,
        "sub": torch.sub,
        "mul": torch.mul,
        "div": torch.div,
        "maximum": torch.maximum,
        "minimum": torch.minimum,
    }
    shapes = {
        "same": ((2, 3), (2, 3)),
        "row": ((2, 3), (3,)),
        "column": ((2, 3), (2, 1)),
        "zero_dim": ((2, 3), ()),
        "both_expand": ((3, 1), (2, 1, 4)),
        "empty": ((0, 3), (1, 3)),
    }
    for op, function in functions.items():
        for name, (a, b) in shapes.items():
            f.add(
                name,
                op,
                lambda a, b, g=function: g(a, b),
                {"a": f.fill(*a, shift=2.0), "b": f.fill(*b, shift=2.0)},
            )
    for op in ("maximum", "minimum"):
        f.add(
            "ties_halve_the_gradient",
            op,
            lambda a, b, g=functions[op]: g(a, b),
            {"a": tensor([1.0, 2.0, 3.0]), "b": tensor([1.0, 3.0, 2.0])},
        )
        f.add(
            "nan",
            op,
            lambda a, b, g=functions[op]: g(a, b),
            {"a": tensor([NAN, 1.0, INF]), "b": tensor([1.0, NAN, -INF])},
            grad=False,
        )
    f.add(
        "positive_base",
        "pow",
        lambda a, b: torch.pow(a, b),
        {"a": f.fill(2, 3, scale=0.875, shift=1.0), "b": f.fill(3, scale=2.0)},
    )
    f.add(
        "zero_base",
        "pow",
        lambda a, b: torch.pow(a, b),
        {"a": tensor([0.0, 0.0, 0.0]), "b": tensor([0.0, 1.0, 2.0])},
        grad=False,
    )
    f.add(
        "by_zero",
        "div",
        lambda a, b: torch.div(a, b),
        {"a": tensor([1.0, -1.0, 0.0]), "b": tensor([0.0, 0.0, 0.0])},
        grad=False,
    )
    left = tensor([1.0, 2.0, NAN, INF, -0.0])
    right = tensor([1.0, 1.0, NAN, INF, 0.0])
    for op in ("eq", "ne", "lt", "le", "gt", "ge"):
        f.add(
            "special",
            op,
            lambda a, b, g=getattr(torch, op): g(a, b),
            {"a": left, "b": right},
            grad=False,
        )
    ints = {"a": torch.tensor([7, -7, 7, -7, 0]), "b": torch.tensor([2, 2, -2, -2, 3])}
    f.add("of_integers_is_f32", "div", lambda a, b: torch.div(a, b), ints)
    f.add("integers", "floor_divide", lambda a, b: torch.floor_divide(a, b), ints)
    f.add("integers", "remainder", lambda a, b: torch.remainder(a, b), ints)
    f.add(
        "integers",
        "sum_i64",
        lambda x: torch.sum(x),
        {"x": torch.tensor([[1, 2], [3, 4]], dtype=torch.int32)},
    )
    f.add("bools", "sum_i64", lambda x: torch.sum(x), {"x": torch.tensor([True, True, False])})
    f.add(
        "u8_does_not_wrap",
        "sum_i64",
        lambda x: torch.sum(x),
        {"x": torch.tensor([200, 100], dtype=torch.uint8)},
    )
