"""PyTorch's training steps on a device, for the rows of `./run bench gpu`.

Invariant: a measurement covers what bench/device_job.cpp's covers: the steps of a window, from an
idle device to an idle device, over batches that lie on the device, with no value read in between.
"""

import time

import torch
from torch.nn import functional

import peer_models

CHECKED = 5  # losses that the two sides compare
MODES = {
    "compile": "default",
    "compile_reduce_overhead": "reduce-overhead",
    "compile_max_autotune": "max-autotune",
}
# graph: a step captured by hand; graph_many: as many steps in one as Cairn puts into one.
WORDS = {"eager", "channels_last", "fused_adam", "graph", "graph_many", *MODES}


def card():
    """The first card's name, or why there is none."""
    if not torch.cuda.is_available():
        return "none"
    return torch.cuda.get_device_name(0)


class DeviceJob:
    """Training steps in a variant: words of WORDS joined by "+"."""

    def __init__(self, request):
        words = set(request["variant"].split("+"))
        if words - WORDS:
            raise ValueError(f"setup: variant must be words of {sorted(WORDS)}, got {words}")
        self.device = torch.device(request["device"])
        self.captures = bool(words & {"graph", "graph_many"})
        if self.captures and self.device.type != "cuda":
            raise ValueError(f"setup: graphs must be captured on cuda, got {self.device}")
        torch.backends.cudnn.benchmark = True
        self.layout = torch.channels_last if "channels_last" in words else torch.contiguous_format
        self.batch, self.count, self.window = (
            request[key] for key in ("batch", "batches", "window")
        )
        self.per_launch = request["steps_per_launch"] if "graph_many" in words else 1
        self.model = peer_models.make_model(request)
        peer_models.fill_from_formula(self.model)
        self.model.to(self.device, memory_format=self.layout).train()
        self.function = self.loss_function(request["precision"] == "bf16-mixed", words)
        options = {"fused": True} if "fused_adam" in words else {}
        if self.captures:
            options["capturable"] = True
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, **options)
        self.load(request)
        self.at, self.graph = 0, None

    def loss_function(self, half, words):
        model, kind = self.model, self.device.type

        def loss(x, target):
            with torch.autocast(kind, torch.bfloat16, enabled=half):
                return functional.cross_entropy(model(x), target)

        for word in words & MODES.keys():
            return torch.compile(loss, mode=MODES[word])
        return loss

    def load(self, request):
        """All batches one behind the other, and the first ones again, so that any stretch of
        per_launch batches is contiguous."""
        source = peer_models.Batches(request, self.layout)
        total = self.count + self.per_launch - 1
        for place in range(total):
            x, target = source.next()
            if place == 0:
                self.inputs = self.room(x, total)
                self.targets = self.room(target, total)
            self.part(self.inputs, place).copy_(x)
            self.part(self.targets, place).copy_(target)

    def room(self, like, count):
        shape = (count * self.batch, *like.shape[1:])
        layout = self.layout if like.dim() == 4 else torch.contiguous_format
        return torch.empty(shape, dtype=like.dtype, device=self.device, memory_format=layout)

    def part(self, t, place, count=1):
        return t[place * self.batch : (place + count) * self.batch]

    def step(self, inputs, targets, place):
        torch.compiler.cudagraph_mark_step_begin()
        self.optimizer.zero_grad()
        loss = self.function(self.part(inputs, place), self.part(targets, place))
        loss.backward()
        self.optimizer.step()
        return loss

    def capture(self):
        """Captures per_launch steps; nothing runs."""
        self.inputs_now = self.room(self.inputs, self.per_launch)
        self.targets_now = self.room(self.targets, self.per_launch)
        self.optimizer.zero_grad()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.losses = [
                self.step(self.inputs_now, self.targets_now, place).detach()
                for place in range(self.per_launch)
            ]

    def launch(self):
        """The next steps: one, or those of the graph."""
        if self.graph:
            self.inputs_now.copy_(self.part(self.inputs, self.at, self.per_launch))
            self.targets_now.copy_(self.part(self.targets, self.at, self.per_launch))
            self.graph.replay()
        else:
            self.losses = [self.step(self.inputs, self.targets, self.at)]
        self.at = (self.at + self.per_launch) % self.count

    def first_step(self):
        """What a capture needs before it, on a stream of its own, as PyTorch asks for."""
        if not self.captures:
            return self.step(self.inputs, self.targets, 0).item()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss = self.step(self.inputs, self.targets, 0).item()
        torch.cuda.current_stream().wait_stream(stream)
        self.capture()
        return loss

    def check(self):
        losses = [[self.first_step()]]
        self.at = 1
        while len(losses) < CHECKED:
            self.launch()
            losses += [[loss.item()] for loss in self.losses]
        return losses

    def run(self, n):
        return [self.measure() for _ in range(n)]

    def measure(self):
        """Milliseconds of a step, from a window of them."""
        self.wait()
        start = time.perf_counter()
        for _ in range(self.window // self.per_launch):
            self.launch()
        self.wait()
        return (time.perf_counter() - start) * 1e3 / self.window

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def memory(reset):
    """Bytes that the allocator took of the device at most, and tensors of those; since the last
    reset, which gives back what is only cached, such as what trying out convolutions took."""
    if not torch.cuda.is_available():
        raise ValueError("memory: device must be cuda, got none")
    if reset:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return {
        "reserved": torch.cuda.max_memory_reserved(),
        "allocated": torch.cuda.max_memory_allocated(),
    }
