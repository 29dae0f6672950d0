"""Collects operator cases and writes them as one safetensors file and one JSON file.

Invariant: every floating input and upstream gradient is representable in float32, so the same case,
computed here in double, is also the truth for a float32 run.
"""

import json
import math
import pathlib

import numpy as np
import torch
from safetensors.numpy import save_file

import formula

DTYPE_NAMES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "bool",
}


def plain(value):
    """Numbers JSON cannot write become the strings "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


class CaseFile:
    def __init__(self):
        self._cases = []
        self._tensors = {}
        self._next = 3000  # tensor numbers for inputs and upstream gradients

    def fill(self, *shape, scale=1.0, shift=0.0):
        """A fresh float64 tensor from the formula, rounded to float32's grid."""
        self._next += 1
        values = formula.values(self._next, shape, scale, shift)
        return torch.from_numpy(values.astype(np.float32).astype(np.float64))

    def integers(self, *shape, low=0, high=4, dtype=torch.float64):
        """Few distinct whole numbers in [low, high): what ties are made of."""
        self._next += 1
        count = int(np.prod(shape, dtype=np.int64))
        values = formula.bits(self._next, count) % np.uint64(high - low)
        return torch.from_numpy(values.astype(np.int64).reshape(shape) + low).to(dtype)

    def add(self, name, op, function, inputs, attrs=None, outputs=("y",), constant=(), grad=True):
        """Runs `function(**inputs)` and stores the case.

        Floating inputs not named in `constant` get gradients when `grad`; each floating output gets
        an upstream gradient. Outputs listed by name must match what the function returns, in order.
        """
        name = f"{op}/{name}"
        if any(case["name"] == name for case in self._cases):
            raise ValueError(f"case {name} exists twice")
        for key, value in inputs.items():
            self._tensors[f"{name}.in.{key}"] = value.detach().contiguous().numpy().copy()
        leaves = {}
        arguments = {}
        for key, value in inputs.items():
            value = value.detach().clone()
            if grad and value.is_floating_point() and key not in constant:
                leaves[key] = value.requires_grad_(True)
            arguments[key] = value
        results = function(**arguments)
        results = results if isinstance(results, (tuple, list)) else (results,)
        if len(results) != len(outputs):
            raise ValueError(f"{name}: {len(results)} results for {len(outputs)} names")
        for key, value in zip(outputs, results):
            self._tensors[f"{name}.out.{key}"] = value.detach().contiguous().numpy().copy()
        upstream = {}
        for key, value in zip(outputs, results):
            if leaves and value.requires_grad:
                upstream[key] = self.fill(*value.shape)
                self._tensors[f"{name}.up.{key}"] = upstream[key].numpy()
        if leaves:
            roots = [value for key, value in zip(outputs, results) if key in upstream]
            grads = torch.autograd.grad(roots, list(leaves.values()), list(upstream.values()))
            for key, value in zip(leaves, grads):
                self._tensors[f"{name}.grad.{key}"] = value.contiguous().numpy().copy()
        self._cases.append(
            {
                "name": name,
                "op": op,
                "attrs": {key: plain(value) for key, value in (attrs or {}).items()},
                "inputs": list(inputs),
                "outputs": list(outputs),
                "upstream": list(upstream),
                "grads": list(leaves),
            }
        )

    def write(self, folder: pathlib.Path, stem: str):
        # A 0-d array would be stored as such; safetensors keeps its empty shape.
        save_file(self._tensors, folder / f"{stem}.safetensors")
        with open(folder / f"{stem}.json", "w") as out:
            lines = ",\n  ".join(json.dumps(case, allow_nan=False) for case in self._cases)
            out.write(f'{{"cases": [\n  {lines}\n]}}\n')
        return len(self._cases)
