"""The PyTorch side of `./run bench`: one JSON object per line on stdin, one on stdout.

sides.py documents the requests. Invariant: a measurement covers what Cairn's job of the same
request covers (bench/jobs.h) and nothing more; batches are made before it.
"""

import gzip
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time

import torch
from torch import nn
from torch.nn import functional

import peer_collectives
import peer_device
import peer_models

CHECKED = 5  # losses, or batches of logits, that the two sides compare
OPS, CHAIN, CHAINS = 1000, 100, 20  # as in op_job.cpp
# "thp" is the environment of this process, which sides.py sets.
WORDS = {"default", "eager", "channels_last", "fused_adam", "foreach_adam", "compile", "thp"}
WORDS.add("bucket_view")  # of peer_collectives.DdpJob


class ModelJob:
    """Training steps or inference, in a variant: words of WORDS joined by "+"."""

    def __init__(self, request):
        words = set(request["variant"].split("+"))
        if words - WORDS:
            raise ValueError(f"setup: variant must be words of {sorted(WORDS)}, got {words}")
        torch.manual_seed(0)
        layout = torch.channels_last if "channels_last" in words else torch.contiguous_format
        model = peer_models.make_model(request)
        if request["weights"] == "formula":
            peer_models.fill_from_formula(model)
        model = model.to(memory_format=layout)
        self.batches = peer_models.Batches(request, layout)
        self.training = request["mode"] == "train"
        model.train(self.training)
        self.model = model

        def loss(x, target):
            return functional.cross_entropy(self.model(x), target)

        if self.training:
            options = {}
            if "fused_adam" in words:
                options["fused"] = True
            if "foreach_adam" in words:
                options["foreach"] = True
            self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, **options)
        function = loss if self.training else model
        self.function = torch.compile(function) if "compile" in words else function

    def step(self):
        """(milliseconds, loss)."""
        x, target = self.batches.next()
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.function(x, target)
        loss.backward()
        self.optimizer.step()
        value = loss.item()
        return (time.perf_counter() - start) * 1e3, [value]

    def forward(self):
        """(milliseconds, logits)."""
        x, _ = self.batches.next()
        with torch.inference_mode():
            start = time.perf_counter()
            y = self.function(x)
            took = (time.perf_counter() - start) * 1e3
        return took, y.flatten().tolist()

    def one(self):
        return self.step() if self.training else self.forward()

    def check(self):
        return [self.one()[1] for _ in range(CHECKED)]

    def run(self, n):
        return [self.one()[0] for _ in range(n)]


class OpJob:
    """Nanoseconds of one add of two 8x8 tensors."""

    def __init__(self, request):
        self.kind = request["op"]
        self.a = torch.full((8, 8), 1.25, requires_grad=self.kind != "forward")
        self.b, self.ones = torch.full((8, 8), 0.5), torch.ones(8, 8)

    def check(self):
        if self.kind == "backward":
            self.backward()
            return [[self.a.grad.sum().item()]]
        return [[torch.add(self.a, self.b).sum().item()]]

    def run(self, n):
        measure = self.backward if self.kind == "backward" else self.add
        return [measure() for _ in range(n)]

    def add(self):
        a, b, add = self.a, self.b, torch.add
        start = time.perf_counter()
        for _ in range(OPS):
            add(a, b)
        return (time.perf_counter() - start) * 1e9 / OPS

    def backward(self):
        seconds = 0
        for _ in range(CHAINS):
            y = self.a
            for _ in range(CHAIN):
                y = torch.add(y, self.b)
            self.a.grad = None
            start = time.perf_counter()
            y.backward(self.ones)
            seconds += time.perf_counter() - start
        return seconds * 1e9 / (CHAINS * CHAIN)


class DataJob:
    """Images per second of torchvision's data set and transforms through a DataLoader."""

    def __init__(self, request):
        from torchvision import datasets, transforms

        self.cpu_clock = request["clock"] == "cpu"
        steps = [transforms.ToTensor(), transforms.Normalize([peer_models.MEAN], [peer_models.STD])]
        self.folder = tempfile.TemporaryDirectory()
        unpack(pathlib.Path(request["data"]), pathlib.Path(self.folder.name) / "FashionMNIST/raw")
        dataset = datasets.FashionMNIST(
            self.folder.name, train=True, transform=transforms.Compose(steps)
        )
        workers = int(request["variant"].removeprefix("workers_"))
        if self.cpu_clock and workers:
            raise ValueError(f"setup: the CPU clock must have no workers, got {workers}")
        self.loader = torch.utils.data.DataLoader(
            dataset, 128, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )

    def check(self):
        """The sums over an epoch of bench/data_job.cpp."""
        images, labels, squares, by_label, by_place = 0, 0, 0.0, 0.0, 0.0
        for x, label in self.loader:
            pixels = x.flatten(1).double().square()
            images += len(label)
            labels += label.sum().item()
            squares += pixels.sum().item()
            by_label += (pixels.sum(1) * label).sum().item()
            by_place += (pixels * torch.arange(pixels.shape[1])).sum().item()
        return [[images], [labels], [squares], [by_label], [by_place]]

    def run(self, n):
        return [self.measure() for _ in range(n)]

    def measure(self):
        clock = time.process_time if self.cpu_clock else time.perf_counter
        start = clock()
        images = sum(len(label) for _, label in self.loader)
        return images / (clock() - start)


def unpack(source, target):
    """torchvision reads plain IDX files only, and looks for all four."""
    target.mkdir(parents=True)
    for part in ("train", "t10k"):
        for stem in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
            packed = source / (stem + ".gz")
            if (source / stem).exists():
                (target / stem).symlink_to((source / stem).resolve())
            elif packed.exists():
                with gzip.open(packed) as file, open(target / stem, "wb") as out:
                    shutil.copyfileobj(file, out)
            else:
                (target / stem).touch()  # the test set is looked for, not read


def peak_resident_bytes():
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status: must have a VmHWM line, got none")


def info(threads):
    imported = peak_resident_bytes()
    torch.set_num_threads(threads)
    capability = torch.backends.cpu.get_cpu_capability() if hasattr(torch.backends, "cpu") else "?"
    lacks = [] if hasattr(torch, "compile") else ["compile"]
    try:
        torch.optim.Adam([nn.Parameter(torch.zeros(1))], fused=True)
    except (RuntimeError, TypeError):  # before 2.4 the fused Adam is for CUDA only
        lacks.append("fused_adam")
    return {
        "name": f"PyTorch {torch.__version__}",
        "python": sys.version.split()[0],
        "threads": torch.get_num_threads(),
        "cpu_capability": capability,
        "onednn": torch.backends.mkldnn.is_available(),
        "blas": "MKL" if torch.backends.mkl.is_available() else "other",
        "cuda": peer_device.card(),
        "mib_after_import": round(imported / 2**20),
        "folder": str(pathlib.Path(torch.__file__).parent),
        "lacks": lacks,
    }


JOBS = {
    "model": ModelJob,
    "device": peer_device.DeviceJob,
    "op": OpJob,
    "data": DataJob,
    "all_reduce": peer_collectives.AllReduceJob,
    "ddp": lambda request: peer_collectives.DdpJob(request, ModelJob(request)),
}


def answer(state, request):
    command = request.get("cmd")
    if command == "info":
        return info(request["threads"])
    if command == "setup":
        torch.set_num_threads(request["threads"])
        state["job"] = JOBS[request["job"]](request)
        return {}
    if command in ("check", "run"):
        if "job" not in state:
            raise ValueError(f"{command}: setup must come first")
        if command == "check":
            return {"outputs": state["job"].check()}
        return {"values": state["job"].run(request["n"])}
    if command == "rss":
        return {"bytes": peak_resident_bytes()}
    if command == "memory":
        return peer_device.memory(request.get("reset", False))
    known = "info, setup, check, run, rss, memory, quit"
    raise ValueError(f"cmd must be one of {known}, got {command}")


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
