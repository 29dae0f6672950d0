"""The PyTorch side of `./run bench step`: a process that sets up one training job and times steps.

One JSON object per line comes in on stdin, one goes out on stdout; bench.py documents the commands.
Invariant: a step's time covers what a training loop does (zero_grad, forward, loss, backward,
optimizer, reading the loss) and nothing that bench/step.cpp leaves out; batches are made before it.
"""

import gzip
import json
import os
import pathlib
import sys
import time

import torch
from torch import nn
from torch.nn import functional

# Size, channels and batch by row. Rows with 3 channels repeat the grey one and resize by nearest.
ROWS = {
    "28x28_b128": (28, 1, 128),
    "32x32_b128": (32, 3, 128),
    "224x224_b16": (224, 3, 16),
}
VARIANTS = [
    "eager",
    "channels_last",
    "fused_adam",
    "foreach_adam",
    "channels_last+fused_adam",
    "compile",
    "compile+channels_last+fused_adam",
]
BATCHES = 64  # distinct batches, from the front of the training file; then they repeat
MEAN, STD = 0.28604, 0.32025
IMAGE_HEADER, LABEL_HEADER = 16, 8  # bytes of an IDX file before its data


class Block(nn.Module):
    """torchvision's BasicBlock, under its names; written out so that torchvision is not needed."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + shortcut)


class ResNet18(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        widths = [64, 64, 128, 256, 512]
        for i in range(1, 5):
            first = Block(widths[i - 1], widths[i], 1 if i == 1 else 2)
            setattr(self, f"layer{i}", nn.Sequential(first, Block(widths[i], widths[i], 1)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def read_idx(folder, stem, header, count):
    """The first `count` bytes after the header of an IDX file, gzipped or not."""
    path = pathlib.Path(folder) / stem
    if path.exists():
        stream = open(path, "rb")
    else:
        stream = gzip.open(str(path) + ".gz", "rb")
    with stream:
        stream.read(header)
        data = stream.read(count)
    if len(data) != count:
        raise ValueError(f"{path}: must hold {count} bytes of data, got {len(data)}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def fill_from_formula(model):
    """Weights both sides can make: tests/parity/formula.py."""
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "parity"))
    import formula

    state = {}
    for place, (name, entry) in enumerate(model.state_dict().items()):
        values = torch.from_numpy(formula.resnet_entry(place, name, tuple(entry.shape)))
        state[name] = values.to(entry.dtype)
    model.load_state_dict(state)


class Job:
    """Model, optimizer and data of one row in one variant ("default" is eager)."""

    def __init__(self, row, variant, weights, data, threads):
        if row not in ROWS:
            raise ValueError(f"setup: row must be one of {', '.join(ROWS)}, got {row}")
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.size, self.channels, self.batch = ROWS[row]
        words = variant.split("+")
        unknown = set(words) - {
            "default",
            "eager",
            "channels_last",
            "fused_adam",
            "foreach_adam",
            "compile",
        }
        if unknown:
            raise ValueError(f"setup: variant must be one of {', '.join(VARIANTS)}, got {variant}")
        self.format = torch.channels_last if "channels_last" in words else torch.contiguous_format
        model = ResNet18(self.channels, 10)
        if weights == "formula":
            fill_from_formula(model)
        model = model.to(memory_format=self.format).train()
        options = {}
        if "fused_adam" in words:
            options["fused"] = True
        if "foreach_adam" in words:
            options["foreach"] = True
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, **options)

        def loss(x, target):
            return functional.cross_entropy(model(x), target)

        self.loss = torch.compile(loss) if "compile" in words else loss
        count = BATCHES * self.batch
        pixels = read_idx(data, "train-images-idx3-ubyte", IMAGE_HEADER, count * 28 * 28)
        self.images = pixels.reshape(count, 1, 28, 28)
        self.labels = read_idx(data, "train-labels-idx1-ubyte", LABEL_HEADER, count).long()
        self.next = 0

    def make_batch(self):
        first = (self.next % BATCHES) * self.batch
        self.next += 1
        x = self.images[first : first + self.batch].float().div_(255).sub_(MEAN).div_(STD)
        if self.size != 28:
            nearest = torch.arange(self.size) * 28 // self.size
            x = x[:, :, nearest][:, :, :, nearest]
        if self.channels != 1:
            x = x.expand(-1, self.channels, -1, -1)
        x = x.contiguous(memory_format=self.format)
        return x, self.labels[first : first + self.batch].clone()

    def step(self):
        """(milliseconds, loss) of one training step on the next batch."""
        x, target = self.make_batch()
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.loss(x, target)
        loss.backward()
        self.optimizer.step()
        value = loss.item()
        return (time.perf_counter() - start) * 1e3, value


def peak_resident_bytes():
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status: must have a VmHWM line, got none")


def info():
    imported = peak_resident_bytes()
    capability = torch.backends.cpu.get_cpu_capability() if hasattr(torch.backends, "cpu") else "?"
    variants = [v for v in VARIANTS if hasattr(torch, "compile") or "compile" not in v]
    try:
        torch.optim.Adam([nn.Parameter(torch.zeros(1))], fused=True)
    except (RuntimeError, TypeError):  # before 2.4 the fused Adam is for CUDA only
        variants = [v for v in variants if "fused_adam" not in v]
    return {
        "name": f"PyTorch {torch.__version__}",
        "python": sys.version.split()[0],
        "threads": torch.get_num_threads(),
        "cpu_capability": capability,
        "onednn": torch.backends.mkldnn.is_available(),
        "mib_after_import": round(imported / 2**20),
        "variants": variants,
    }


def answer(state, request):
    command = request.get("cmd")
    if command == "info":
        return info()
    if command == "setup":
        start = time.perf_counter()
        state["job"] = Job(
            request["row"],
            request.get("variant", "eager"),
            request.get("weights", "formula"),
            request["data"],
            request.get("threads", 2),
        )
        return {"ms": (time.perf_counter() - start) * 1e3}
    if command == "step":
        if "job" not in state:
            raise ValueError("step: setup must come first")
        steps = [state["job"].step() for _ in range(request["n"])]
        return {"ms": [ms for ms, _ in steps], "losses": [loss for _, loss in steps]}
    if command == "rss":
        return {"bytes": peak_resident_bytes()}
    raise ValueError(f"cmd must be one of info, setup, step, rss, quit, got {command}")


def main():
    # Compilers and libraries may print: answers go to a private copy of stdout, the rest to stderr.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    state = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("cmd") == "quit":
            break
        try:
            reply = answer(state, request)
        except Exception as error:  # the driver decides what an error means
            reply = {"error": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(reply) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
