"""Type promotion and printing: two tables of what PyTorch answers.

Invariant: both files hold questions and answers only; no number in them depends on the machine.
"""

import json
import math
import pathlib

import torch

from case_file import DTYPE_NAMES, plain

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
SCALARS = {"int": 2, "float": 2.5, "bool": True}


def promotion():
    name = DTYPE_NAMES
    one_dim = {d: torch.ones(2, dtype=d) for d in DTYPES}
    zero_dim = {d: torch.ones((), dtype=d) for d in DTYPES}
    pairs = [(a, b) for a in DTYPES for b in DTYPES]
    return {
        "dtypes": [name[d] for d in DTYPES],
        "tensor_tensor": [
            [name[a], name[b], name[torch.result_type(one_dim[a], one_dim[b])]] for a, b in pairs
        ],
        "tensor_0d": [
            [name[a], name[b], name[torch.result_type(one_dim[a], zero_dim[b])]] for a, b in pairs
        ],
        "0d_0d": [
            [name[a], name[b], name[torch.result_type(zero_dim[a], zero_dim[b])]] for a, b in pairs
        ],
        "tensor_scalar": [
            [name[a], k, name[torch.result_type(one_dim[a], v)]]
            for a in DTYPES
            for k, v in SCALARS.items()
        ],
        "0d_scalar": [
            [name[a], k, name[torch.result_type(zero_dim[a], v)]]
            for a in DTYPES
            for k, v in SCALARS.items()
        ],
        "div": [[name[a], name[b], name[(one_dim[a] / one_dim[b]).dtype]] for a, b in pairs],
        "sum": [[name[a], name[one_dim[a].sum().dtype]] for a in DTYPES],
        "exp": [[name[a], name[one_dim[a].exp().dtype]] for a in DTYPES],
    }


def printing():
    inf, nan = math.inf, math.nan
    f32, f64, bf16 = torch.float32, torch.float64, torch.bfloat16
    i64, i32, u8, boolean = torch.int64, torch.int32, torch.uint8, torch.bool
    wave = [math.floor(1000 * math.sin(i)) / 256 for i in range(12)]
    cases = [
        ("zero_dim_float", f32, [], [3.5]),
        ("zero_dim_whole", f32, [], [2.0]),
        ("zero_dim_int", i64, [], [7]),
        ("zero_dim_bool", boolean, [], [True]),
        ("zero_dim_f64", f64, [], [0.1]),
        ("empty", f32, [0], []),
        ("empty_2d", f32, [0, 3], []),
        ("empty_int", i64, [0], []),
        ("ints", i64, [4], [1, -20, 300, 0]),
        ("ints_2d", i64, [2, 3], [1, 2, 3, 40, 50, 60]),
        ("i32", i32, [3], [1, 2, 3]),
        ("u8", u8, [2, 2], [0, 255, 7, 10]),
        ("bools", boolean, [3], [True, False, True]),
        ("whole_floats", f32, [3], [1.0, 2.0, -3.0]),
        ("floats", f32, [4], [0.1, -0.25, 3.14159265, 100.5]),
        ("one_third", f32, [1], [1.0 / 3.0]),
        ("small_needs_exponent", f32, [3], [1e-5, 2e-6, 3.5e-7]),
        ("large_needs_exponent", f32, [2], [1.5e9, -2.25e10]),
        ("mixed_magnitudes", f32, [3], [1e-3, 1.0, 12345.678]),
        ("ratio_over_1000", f32, [2], [0.001, 1.5]),
        ("whole_large", f32, [2], [123456789.0, 1.0]),
        ("whole_and_half", f32, [3], [1000.0, 2.5, 0.0]),
        ("nan_inf", f32, [4], [1.5, nan, inf, -inf]),
        ("whole_nan_inf", f32, [4], [1.0, nan, inf, -inf]),
        ("only_nan", f32, [2], [nan, nan]),
        ("negative_zero", f32, [2], [-0.0, 0.0]),
        ("matrix_3x4", f32, [3, 4], wave),
        ("three_dims", f32, [2, 2, 3], wave),
        ("four_dims", i64, [2, 1, 2, 2], list(range(8))),
        ("f64_suffix", f64, [3], [0.5, 1.25, -2.0]),
        ("f64_long", f64, [2], [math.pi, math.e]),
        ("bf16", bf16, [3], [0.5, 1.0, 3.140625]),
        ("f16", torch.float16, [4], [0.5, 1.0, 3.140625, -0.0999755859375]),
        ("line_wraps", f32, [20], [float(i) * 0.5 for i in range(20)]),
        ("int_line_wraps", i64, [40], [100 * i for i in range(40)]),
        ("summarised_1001", f32, [1001], [float(i) for i in range(1001)]),
        ("summarised_int_2000", i64, [2000], list(range(2000))),
        ("full_1000", f32, [1000], [float(i % 10) for i in range(1000)]),
        ("summarised_matrix", f32, [40, 30], [i / 8.0 for i in range(1200)]),
        ("summarised_long_rows", i64, [3, 500], list(range(1500))),
    ]
    rows = []
    for name, dtype, shape, values in cases:
        tensor = torch.tensor(values, dtype=dtype).reshape(shape)
        text = repr(tensor)
        row = {"name": name, "dtype": DTYPE_NAMES[dtype], "shape": shape, "text": text}
        if len(values) > 100:  # long runs as start and step, or a repeating block
            row["values"] = values[:11] if name == "full_1000" else values[:3]
            row["rule"] = "repeat10" if name == "full_1000" else "arange"
            if name != "full_1000":
                step = values[1] - values[0]
                assert values == [values[0] + step * i for i in range(len(values))]
        else:
            row["values"] = [plain(v) for v in values]
        rows.append(row)
    return rows


def write(folder: pathlib.Path):
    torch.set_printoptions(profile="default")
    with open(folder / "promotion.json", "w") as out:
        tables = ",\n  ".join(f'"{key}": {json.dumps(rows)}' for key, rows in promotion().items())
        out.write(f"{{\n  {tables}\n}}\n")
    with open(folder / "printing.json", "w") as out:
        rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in printing())
        out.write(f'{{"cases": [\n  {rows}\n]}}\n')
