"""A small network under torch.autocast on the CPU: outputs, their dtypes, and gradients.

Invariant: parameters and inputs come from the formula; the loss is taken outside of the scope.
"""

import json
import pathlib

import torch
import torch.nn.functional as F

import formula
from case_file import DTYPE_NAMES

SHAPES = {
    "x": [3, 2, 6, 6],
    "conv.weight": [4, 2, 3, 3],
    "conv.bias": [4],
    "bn.weight": [4],
    "bn.bias": [4],
    "fc.weight": [5, 144],
    "fc.bias": [5],
}


def run(dtype):
    t = {
        name: torch.tensor(formula.values(place, shape, 0.25, 1.0 if name == "bn.weight" else 0.0))
        .float()
        .requires_grad_()
        for place, (name, shape) in enumerate(SHAPES.items())
    }
    dtypes = {}
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        y = F.conv2d(t["x"], t["conv.weight"], t["conv.bias"], padding=1)
        dtypes["conv2d"] = y.dtype
        y = F.batch_norm(y, None, None, t["bn.weight"], t["bn.bias"], training=True)
        dtypes["batch_norm"] = y.dtype
        y = F.linear(F.relu(y).flatten(1), t["fc.weight"], t["fc.bias"])
        dtypes["linear"] = y.dtype
    y.float().square().mean().backward()
    return {
        "dtype": DTYPE_NAMES[dtype],
        "dtypes": {name: DTYPE_NAMES[d] for name, d in dtypes.items()},
        "output": y.float().flatten().tolist(),
        "gradient_dtypes": sorted({DTYPE_NAMES[v.grad.dtype] for v in t.values()}),
        "gradients": {name: v.grad.flatten()[:24].tolist() for name, v in t.items()},
    }


def write(folder: pathlib.Path):
    with open(folder / "autocast.json", "w") as out:
        rows = ",\n  ".join(
            json.dumps(run(d)) for d in (torch.float32, torch.bfloat16, torch.float16)
        )
        out.write(f'{{"cases": [\n  {rows}\n]}}\n')
