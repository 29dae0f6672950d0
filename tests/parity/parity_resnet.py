"""ResNet parity: what one forward, one backward and five Adam steps must give, from formula-made
weights.

Invariant: nothing here comes from a random generator or a file; weights, images and targets are
formula.py's, so a reader in another language rebuilds them and compares with the few numbers
stored.
"""

import json
import pathlib

import numpy as np
import torch
import torchvision
from torch import nn

import formula

BATCH = 8
STEPS = 5


def job_model(dtype):
    """torchvision's resnet18 as the main job uses it, with formula-made weights."""
    model = torchvision.models.resnet18(weights=None, num_classes=10)
    model.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    state = {}
    for place, (name, entry) in enumerate(model.state_dict().items()):
        values = torch.from_numpy(formula.resnet_entry(place, name, tuple(entry.shape)))
        state[name] = values.to(dtype) if entry.is_floating_point() else values
    model = model.to(dtype)
    model.load_state_dict(state, strict=True)
    return model


def job_batch(dtype):
    images = formula.values(formula.IMAGES, (BATCH, 1, 28, 28), scale=3.0**0.5)
    return torch.from_numpy(images).to(dtype), torch.arange(BATCH) % 10


def parameter_places(model):
    """[(place in the state_dict, name, parameter)] in parameter order."""
    places = {name: place for place, name in enumerate(model.state_dict())}
    return [(places[name], name, p) for name, p in model.named_parameters()]


def summary(tensors):
    """Norm, sum and sampled entries of each (place, tensor); norm and sum are taken in double."""
    norms, sums, indices, samples = [], [], [], []
    for place, tensor in tensors:
        flat = tensor.detach().reshape(-1).contiguous()
        index = formula.samples(place, flat.numel())
        norms.append(flat.double().norm().item())
        sums.append(flat.double().sum().item())
        indices.append(index)
        samples.append(flat.numpy()[index])
    return np.array(norms), np.array(sums), np.stack(indices), np.stack(samples)


def job_results(dtype, weights_dtype):
    """Everything stored for one dtype; weights and images are rounded to weights_dtype first."""
    out = {}
    x, target = job_batch(weights_dtype)
    x = x.to(dtype)

    model = job_model(weights_dtype).to(dtype)
    with torch.no_grad():
        out["eval_logits"] = model.eval()(x).numpy()
    logits = model.train()(x)
    loss = nn.functional.cross_entropy(logits, target)
    loss.backward()
    out["train_logits"] = logits.detach().numpy()
    out["loss"] = loss.detach().numpy()
    places = parameter_places(model)
    norm, total, index, sample = summary([(place, p.grad) for place, _, p in places])
    out["place"] = np.array([place for place, _, _ in places])
    out["index"] = index
    out["grad.norm"], out["grad.sum"], out["grad.sample"] = norm, total, sample
    for name, buffer in model.named_buffers():
        out["buffer." + name] = buffer.numpy().copy()

    model = job_model(weights_dtype).to(dtype).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().numpy())
    norm, total, _, sample = summary([(place, p) for place, _, p in parameter_places(model)])
    out["adam.losses"] = np.array(losses)
    out["adam.norm"], out["adam.sum"], out["adam.sample"] = norm, total, sample
    with torch.no_grad():
        out["adam.eval_logits"] = model.eval()(x).numpy()
    return out


def job_files():
    """{file name: {tensor name: array}}."""
    f64 = job_results(torch.float64, torch.float64)
    f32 = job_results(torch.float32, torch.float32)
    truth = job_results(torch.float64, torch.float32)
    integers = [name for name, value in truth.items() if value.dtype == np.int64]
    f32.update({"f64." + name: value for name, value in truth.items() if name not in integers})
    return {"resnet18_f64.safetensors": f64, "resnet18_f32.safetensors": f32}


def describe(model):
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameter_names": [name for name, _ in model.named_parameters()],
        "state_dict": [
            {
                "name": name,
                "shape": list(entry.shape),
                "dtype": "i64" if entry.dtype == torch.int64 else "f32",
            }
            for name, entry in model.state_dict().items()
        ],
    }


def write_keys(folder: pathlib.Path):
    models = {
        "resnet18_job": job_model(torch.float32),
        "resnet18": torchvision.models.resnet18(weights=None),
        "resnet34": torchvision.models.resnet34(weights=None),
        "resnet50": torchvision.models.resnet50(weights=None),
    }
    for name, model in models.items():
        with open(folder / f"keys_{name}.json", "w") as out:
            description = describe(model)
            entries = ",\n    ".join(json.dumps(entry) for entry in description["state_dict"])
            names = json.dumps(description["parameter_names"])
            out.write(
                f'{{\n  "parameters": {description["parameters"]},\n  "parameter_names": {names},\n'
            )
            out.write(f'  "state_dict": [\n    {entries}\n  ]\n}}\n')
