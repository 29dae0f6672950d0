#!/usr/bin/env python3
"""Writes the parity files beside this script with PyTorch; run by hand, the files are committed.

    python tests/parity/make_parity.py            needs torch, torchvision, numpy, safetensors

README.md beside it says what each file holds, formula.py how weights and inputs are made.
Invariant: two runs with the same versions on the same kind of CPU give the same bytes, and all
files together stay under 3 MB.
"""

import pathlib
import sys
import warnings

import safetensors
import torch
import torchvision
from safetensors.numpy import save_file

import parity_autocast
import parity_elementwise
import parity_layers
import parity_losses
import parity_maths
import parity_optim
import parity_resnet
import parity_text
from case_file import CaseFile

LIMIT = 3_000_000  # bytes


def write_ops(folder):
    cases = CaseFile()
    for part in (
        parity_layers.convolutions,
        parity_layers.pooling,
        parity_layers.normalisation,
        parity_layers.products,
        parity_layers.activations,
        parity_layers.embeddings,
        parity_losses.class_losses,
        parity_losses.probability_losses,
        parity_losses.regression_losses,
        parity_maths.reductions,
        parity_maths.moves,
        parity_elementwise.unary,
        parity_elementwise.binary,
        parity_layers.feed_forward_blocks,  # last, so that the others' values stay
    ):
        part(cases)
    return cases.write(folder, "ops")


def main():
    folder = pathlib.Path(__file__).resolve().parent
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    warnings.simplefilter("ignore")  # NaN variances and unstepped optimizers are asked for
    count = write_ops(folder)
    parity_optim.write(folder)
    parity_text.write(folder)
    parity_autocast.write(folder)
    parity_resnet.write_keys(folder)
    for name, tensors in parity_resnet.job_files().items():
        save_file(tensors, folder / name)
    total = 0
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        total += path.stat().st_size
        print(f"{path.stat().st_size:9d}  {path.name}")
    print(
        f"{total:9d}  bytes in all, {count} operator cases; torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, safetensors {safetensors.__version__}"
    )
    if total > LIMIT:
        sys.exit(f"make_parity: files must stay under {LIMIT} bytes, got {total}")


if __name__ == "__main__":
    main()
