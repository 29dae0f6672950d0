"""Optimizers, learning-rate schedules and gradient clipping: what each step leaves behind, in
double.

Invariant: the gradients are given, the same for every optimizer, and do not depend on the
parameters.
"""

import json
import pathlib

import numpy as np
import torch
from safetensors.numpy import save_file

import formula

STEPS = 8
SHAPES = {"a": (3, 4), "b": (5,)}
# Sizes of the gradient from step to step: a peak early on (so that amsgrad's maximum matters) and
# one step of exact zeros (moments decay, momentum goes on).
SCALES = (1.0, 4.0, 0.25, 0.0, 0.5, 1e-3, 2.0, 0.125)


def start():
    return {name: formula.values(2900 + i, shape) for i, (name, shape) in enumerate(SHAPES.items())}


def gradient(step, i, shape):
    return SCALES[step] * formula.values(2910 + 2 * step + i, shape)


OPTIMIZERS = [
    ("sgd_plain", "SGD", dict(lr=0.1)),
    ("sgd_momentum", "SGD", dict(lr=0.1, momentum=0.9)),
    ("sgd_nesterov", "SGD", dict(lr=0.1, momentum=0.9, nesterov=True)),
    ("sgd_weight_decay", "SGD", dict(lr=0.1, weight_decay=0.01)),
    ("sgd_dampening", "SGD", dict(lr=0.1, momentum=0.9, dampening=0.5)),
    ("sgd_all", "SGD", dict(lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.1)),
    ("sgd_maximize", "SGD", dict(lr=0.1, momentum=0.5, maximize=True)),
    ("sgd_maximize_decay", "SGD", dict(lr=0.1, weight_decay=0.1, maximize=True)),
    ("adam_defaults", "Adam", dict(lr=1e-3)),
    ("adam_betas_eps", "Adam", dict(lr=0.01, betas=(0.5, 0.9), eps=1e-3)),
    ("adam_weight_decay", "Adam", dict(lr=0.01, weight_decay=0.1)),
    ("adam_amsgrad", "Adam", dict(lr=0.01, betas=(0.9, 0.5), amsgrad=True)),
    (
        "adam_all",
        "Adam",
        dict(lr=0.01, betas=(0.8, 0.5), weight_decay=0.1, amsgrad=True, maximize=True),
    ),
    ("adamw_defaults", "AdamW", dict(lr=1e-3)),
    ("adamw_weight_decay", "AdamW", dict(lr=0.01, weight_decay=0.1)),
    ("adamw_amsgrad", "AdamW", dict(lr=0.01, betas=(0.9, 0.5), weight_decay=0.0, amsgrad=True)),
    ("adamw_maximize", "AdamW", dict(lr=0.01, weight_decay=0.1, maximize=True)),
]
# Two parameter groups: options of the second override those of the optimizer.
GROUPS = [
    (
        "sgd_groups",
        "SGD",
        dict(lr=0.1, momentum=0.9),
        dict(lr=0.01, momentum=0.0, weight_decay=0.1),
    ),
    ("adamw_groups", "AdamW", dict(lr=0.01), dict(lr=0.001, weight_decay=0.0, betas=(0.5, 0.9))),
]


def run_optimizer(kind, options, second=None):
    """Parameters after each step, [STEPS, numel] by name; `second`: options of b's own group."""
    parameters = {
        name: torch.nn.Parameter(torch.from_numpy(v.copy())) for name, v in start().items()
    }
    groups = (
        [{"params": [parameters["a"]]}, {"params": [parameters["b"]], **second}]
        if second
        else list(parameters.values())
    )
    optimizer = getattr(torch.optim, kind)(groups, **options)
    history = {name: [] for name in parameters}
    for step in range(STEPS):
        for i, (name, p) in enumerate(parameters.items()):
            p.grad = torch.from_numpy(gradient(step, i, SHAPES[name]))
        optimizer.step()
        for name, p in parameters.items():
            history[name].append(p.detach().numpy().reshape(-1).copy())
    return {name: np.stack(rows) for name, rows in history.items()}


def optimizers():
    tensors, cases = {}, []
    for name, values in start().items():
        tensors[f"start.{name}"] = values
    for step in range(STEPS):
        for i, (name, shape) in enumerate(SHAPES.items()):
            tensors[f"grad.{step}.{name}"] = gradient(step, i, shape)
    for name, kind, options, *second in [*OPTIMIZERS, *GROUPS]:
        for key, rows in run_optimizer(kind, options, *second).items():
            tensors[f"{name}.{key}"] = rows
        case = {"name": name, "optimizer": kind, "options": options}
        if second:
            case["second_group"] = second[0]
        cases.append(case)
    return tensors, cases


def clipping(tensors):
    cases = []
    for name, scale, max_norm, norm_type in (
        ("over", 1.0, 1.0, 2.0),
        ("under", 0.01, 1.0, 2.0),
        ("norm_1", 1.0, 2.0, 1.0),
        ("norm_inf", 1.0, 0.5, float("inf")),
        ("zero_gradients", 0.0, 1.0, 2.0),
    ):
        params = [torch.nn.Parameter(torch.zeros(s, dtype=torch.float64)) for s in SHAPES.values()]
        for i, p in enumerate(params):
            p.grad = torch.from_numpy(scale * formula.values(2950 + i, tuple(p.shape)))
            tensors[f"clip.{name}.before.{list(SHAPES)[i]}"] = p.grad.numpy().copy()
        total = torch.nn.utils.clip_grad_norm_(params, max_norm, norm_type)
        for i, p in enumerate(params):
            tensors[f"clip.{name}.after.{list(SHAPES)[i]}"] = p.grad.numpy().copy()
        cases.append(
            {
                "name": name,
                "function": "clip_grad_norm_",
                "max_norm": max_norm,
                "norm_type": "inf" if norm_type == float("inf") else norm_type,
                "total_norm": total.item(),
            }
        )
    params = [torch.nn.Parameter(torch.zeros(s, dtype=torch.float64)) for s in SHAPES.values()]
    for i, p in enumerate(params):
        p.grad = torch.from_numpy(formula.values(2950 + i, tuple(p.shape)))
        tensors[f"clip.value.before.{list(SHAPES)[i]}"] = p.grad.numpy().copy()
    torch.nn.utils.clip_grad_value_(params, 0.25)
    for i, p in enumerate(params):
        tensors[f"clip.value.after.{list(SHAPES)[i]}"] = p.grad.numpy().copy()
    cases.append({"name": "value", "function": "clip_grad_value_", "clip_value": 0.25})
    return cases


SCHEDULES = [
    ("step", "StepLR", dict(step_size=7, gamma=0.1)),
    ("step_half", "StepLR", dict(step_size=1, gamma=0.5)),
    ("multi_step", "MultiStepLR", dict(milestones=[5, 12, 13, 25], gamma=0.5)),
    ("multi_step_repeated", "MultiStepLR", dict(milestones=[4, 4, 9], gamma=0.1)),
    ("exponential", "ExponentialLR", dict(gamma=0.9)),
    ("cosine", "CosineAnnealingLR", dict(T_max=20, eta_min=0.0)),
    ("cosine_eta_min", "CosineAnnealingLR", dict(T_max=10, eta_min=0.01)),
    (
        "one_cycle_cos",
        "OneCycleLR",
        dict(max_lr=1.0, total_steps=30, pct_start=0.3, anneal_strategy="cos"),
    ),
    (
        "one_cycle_linear",
        "OneCycleLR",
        dict(
            max_lr=1.0,
            total_steps=30,
            pct_start=0.25,
            anneal_strategy="linear",
            div_factor=10.0,
            final_div_factor=100.0,
        ),
    ),
    (
        "one_cycle_three_phase",
        "OneCycleLR",
        dict(
            max_lr=0.5,
            total_steps=30,
            pct_start=0.4,
            anneal_strategy="cos",
            three_phase=True,
            base_momentum=0.8,
            max_momentum=0.9,
        ),
    ),
    ("one_cycle_no_momentum", "OneCycleLR", dict(max_lr=1.0, total_steps=30, cycle_momentum=False)),
    ("linear_warmup", "LinearLR", dict(start_factor=0.1, end_factor=1.0, total_iters=8)),
    ("linear_default", "LinearLR", dict()),
    ("linear_down", "LinearLR", dict(start_factor=1.0, end_factor=0.0, total_iters=30)),
]
METRICS = [
    1.0,
    0.9,
    0.8,
    0.8,
    0.8,
    0.8,
    0.8,
    0.79,
    0.79,
    0.79,
    0.79,
    0.79995,
    0.5,
    0.5,
    0.5,
    0.5,
    0.5,
    0.5,
    0.5,
    0.5,
    0.4,
    0.6,
    0.6,
    0.6,
    0.6,
    0.6,
    0.6,
    0.6,
    0.6,
    0.6,
]
PLATEAUS = [
    ("plateau", dict(mode="min", factor=0.1, patience=2)),
    ("plateau_cooldown", dict(mode="min", factor=0.5, patience=1, cooldown=3, min_lr=0.02)),
    ("plateau_max", dict(mode="max", factor=0.5, patience=3)),
    ("plateau_abs", dict(mode="min", factor=0.5, patience=2, threshold=0.05, threshold_mode="abs")),
    ("plateau_eps", dict(mode="min", factor=0.9, patience=0, eps=0.005)),
]


def sgd():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)


def schedules():
    """lrs[k] is the rate that step k uses: what stands after k calls of scheduler.step()."""
    cases = []

    def follow(name, kind, options, optimizer, advance):
        lrs, momenta = [], []
        for k in range(30):
            lrs.append(optimizer.param_groups[0]["lr"])
            momenta.append(optimizer.param_groups[0]["momentum"])
            optimizer.step()
            if k < 29:
                advance(k)
        case = {"name": name, "scheduler": kind, "base_lr": 0.1, "options": options, "lrs": lrs}
        if kind == "OneCycleLR":
            case["momenta"] = momenta
        if kind == "ReduceLROnPlateau":
            case["metrics"] = METRICS
        cases.append(case)

    for name, kind, options in SCHEDULES:
        optimizer = sgd()
        scheduler = getattr(torch.optim.lr_scheduler, kind)(optimizer, **options)
        follow(name, kind, options, optimizer, lambda k, s=scheduler: s.step())
    for name, options in PLATEAUS:
        optimizer = sgd()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
        follow(
            name, "ReduceLROnPlateau", options, optimizer, lambda k, s=scheduler: s.step(METRICS[k])
        )
    return cases


def write(folder: pathlib.Path):
    tensors, cases = optimizers()
    clips = clipping(tensors)
    save_file(tensors, folder / "optim.safetensors")

    def lines(rows):
        return "[\n    " + ",\n    ".join(json.dumps(row) for row in rows) + "\n  ]"

    with open(folder / "optim.json", "w") as out:
        out.write(
            f'{{\n  "optimizers": {lines(cases)},\n  "clipping": {lines(clips)},\n'
            f'  "schedules": {lines(schedules())}\n}}\n'
        )
