"""The table of rows: what is measured, against what, and what must be reached.

Invariant: a row's request says everything a side needs to do its job, so neither side knows rows.
"""

import dataclasses

import flops

IMAGE_VARIANTS = (
    "eager",
    "channels_last",
    "fused_adam",
    "foreach_adam",
    "channels_last+fused_adam",
    "fused_adam+thp",  # thp: huge pages for PyTorch's memory, as Cairn's has them
    "channels_last+fused_adam+thp",
    "compile",
    "compile+fused_adam",
    "compile+channels_last",
    "compile+channels_last+fused_adam",
)
PLAIN_VARIANTS = ("eager", "fused_adam", "foreach_adam", "compile", "compile+fused_adam")
EAGER = ("eager", "channels_last", "channels_last+fused_adam")
GRAPHS = ("channels_last+fused_adam+graph", "channels_last+fused_adam+graph_many")
COMPILED = tuple(
    f"channels_last+fused_adam+{word}"
    for word in ("compile", "compile_reduce_overhead", "compile_max_autotune")
)
DDP_VARIANTS = (
    "eager",
    "channels_last",
    "fused_adam",
    "channels_last+fused_adam",
    "channels_last+fused_adam+bucket_view",  # gradients lie in DDP's buckets
    "channels_last+fused_adam+bucket_view+thp",
)
INFERENCE_VARIANTS = ("eager", "channels_last", "compile", "compile+channels_last")
DATA_VARIANTS = ("workers_0", "workers_2")

# Relative to the largest of a side's numbers, output by output. A ResNet's first loss is one forward
# pass: f32 rounding. Later ones follow Adam steps, which move an entry by the learning rate even
# where its gradient is only rounding error, so two correct programs part: PyTorch's own layouts
# differ by up to 4e-6, 0.5 %, 1.1 %, 9 % and 11 % on ResNet18, and by 1.3e-5, 0.7 %, 0.2 %, 1.8 %
# and 6 % on ResNet50 (eager against channels_last), where Cairn lies 1.0 % from the second loss.
RESNET_TOLERANCE = (1e-4, 2e-2, 0.05, 0.2, 0.25)
# Without batch norm they stay together: the two sides and PyTorch's variants differ by up to 3e-7
# over all five losses. A wrong factor or a missing term shows far above this.
PLAIN_TOLERANCE = (1e-5,)
# Logits of one forward pass: seen up to 2e-6 of the largest logit between layouts and sides.
INFERENCE_TOLERANCE = (1e-4,)
# On a device the convolutions round their inputs to TF32 (10 bits of fraction) or bf16 (7), each in
# an order of its own: the first loss, a mean over 128 images, gets a few roundings' worth, and Adam
# amplifies from there as above. Not measured yet.
TF32_TOLERANCE = (1e-2, 0.05, 0.1, 0.3, 0.4)
BF16_TOLERANCE = (3e-2, 0.1, 0.2, 0.4, 0.5)
EXACT = (1e-10,)  # the same numbers summed in another order: seen up to 1e-15
SAME = (0.0,)  # the same program on the same batch

GRADIENTS = 44_701_480  # bytes of those of ResNet18 with one channel and 10 classes


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    verb: str
    label: str  # for the plot
    # compare: alternating blocks; memory, startup: fresh processes; kernels: Cairn alone; of verb
    # gpu, device: alternating windows of steps; device_memory: what those held; job: whole
    # programs; collective: compare, with a team of ranks a side
    kind: str
    unit: str
    request: dict
    must: float | None = None  # of the ratio
    aim: float | None = None
    block: int = 0  # measurements of a block
    variants: tuple = ("eager",)
    tolerance: tuple = ()
    threads: int | None = None  # None: what the command line says
    higher: bool = False  # a larger figure is better, and must and aim are lower bounds
    libtorch: bool = False  # the peer is LibTorch's C++, not Python
    flops: float = 0.0  # of one measurement
    live: int = 0  # parameters an optimizer step moves
    bytes: float = 0.0  # memory read and written for one unit of a higher-is-better figure
    floor: float | None = None  # the time must be within this multiple of the measured floor
    of: tuple = ()  # device_memory: rows whose processes are asked
    ranks: int = 0  # collective: processes a side
    two_hosts: bool = False  # collective: ranks are in two network namespaces
    apart: bool = False  # collective: the peer is Cairn's ranks without a word to each other

    def met(self, ratio, floor_multiple=None):
        """What is reached: "aim", "must", "no", "no (floor)", or None where there is no bound."""
        if self.floor is not None and floor_multiple is not None and floor_multiple > self.floor:
            return "no (floor)"
        if ratio is None or self.must is None:
            return None
        sign = -1 if self.higher else 1
        if self.aim is not None and sign * ratio <= sign * self.aim:
            return "aim"
        return "must" if sign * ratio <= sign * self.must else "no"


def image_request(model, mode, size, channels, batch, batches):
    return {
        "job": "model",
        "model": model,
        "mode": mode,
        "size": size,
        "channels": channels,
        "batch": batch,
        "batches": batches,  # distinct ones, from the front of the training file; then they repeat
        "weights": "formula",
    }


def training(name, verb, label, model, size, channels, batch, block, must, aim, **more):
    work = getattr(flops, model)(size, channels, batch)
    return Row(
        name,
        verb,
        label,
        "compare",
        "ms",
        image_request(model, "train", size, channels, batch, 64),
        must,
        aim,
        block,
        IMAGE_VARIANTS,
        RESNET_TOLERANCE,
        flops=work.step,
        live=work.live,
        **more,
    )


def inference(batch, block, batches):
    return Row(
        f"resnet18_infer_224x224_b{batch}",
        "inference",
        f"ResNet18 inference, 224x224, batch {batch}",
        "compare",
        "ms",
        image_request("resnet18", "infer", 224, 3, batch, batches),
        0.9,
        0.7,
        block,
        INFERENCE_VARIANTS,
        INFERENCE_TOLERANCE,
        flops=flops.resnet18(224, 3, batch).forward,
    )


def plain(name, label, model, request, work, block):
    return Row(
        name,
        "models",
        label,
        "compare",
        "ms",
        {"job": "model", "model": model, "mode": "train", "weights": "formula", **request},
        0.8,
        0.6,
        block,
        PLAIN_VARIANTS,
        PLAIN_TOLERANCE,
        flops=work.step,
        live=work.live,
    )


def process(name, label, unit, batches, without, must, aim):
    request = image_request("resnet18", "train", 28, 1, 128, batches)
    variants = tuple(v for v in IMAGE_VARIANTS if without.isdisjoint(v.split("+")))
    request["weights"] = "default"
    return Row(name, name, label, name, unit, request, must, aim, variants=variants)


def small_op(kind, label, libtorch):
    return Row(
        f"op_{kind}" + ("_libtorch" if libtorch else ""),
        "ops",
        f"8x8 add, {label}, {'LibTorch C++' if libtorch else 'PyTorch from Python'}",
        "compare",
        "ns",
        {"job": "op", "op": kind},
        0.2,
        0.1,
        20,
        tolerance=EXACT,
        libtorch=libtorch,
    )


def data(name, label, clock, variants, threads, must, aim):
    return Row(
        name,
        "data",
        label,
        "compare",
        "images/s",
        {"job": "data", "clock": clock},
        must,
        aim,
        1,
        variants,
        EXACT,
        threads,
        higher=True,
        bytes=784 + 4 * 784,  # a byte read and a float written a pixel
    )


def on_device(name, label, size, channels, precision, variants, must, aim, **more):
    request = image_request("resnet18", "train", size, channels, 128, more.pop("batches"))
    request.update(
        job="device", precision=precision, steps_per_launch=4, window=more.pop("window")
    )
    tolerance = TF32_TOLERANCE if precision == "f32" else BF16_TOLERANCE
    return Row(
        name, "gpu", label, "device", "ms", request, must, aim, 3, variants, tolerance, **more
    )


def device_memory(name, label, of):
    return Row(name, "gpu", label, "device_memory", "MiB", {}, 0.7, 0.45, of=of)


def kernels(what, label, threads):
    request = {"what": what, "size": 28, "channels": 1, "batch": 128}
    return Row(
        f"{what}_{threads}thread{'s' if threads > 1 else ''}",
        "gemm",
        f"{label}, {threads} thread{'s' if threads > 1 else ''}",
        "kernels",
        "GFLOP/s",
        request,
        0.8,
        0.9,
        21,
        threads=threads,
        higher=True,
    )


def collective(name, label, request, must, aim, block=5, variants=("eager",), tolerance=EXACT,
               ranks=2, **more):
    return Row(name, "collectives", label, "collective", "ms", request, must, aim, block, variants,
               tolerance, threads=1, ranks=ranks, **more)


def all_reduce(name, label, size, calls, must, aim, **more):
    request = {"job": "all_reduce", "bytes": size, "calls": calls, "backend": "auto"}
    return collective(name, label, request, must, aim, **more)


def ddp(name, label, must, aim, variants, tolerance, apart=False, **more):
    request = image_request("resnet18", "train", 28, 1, 64, 128)
    request.update(job="ddp", backend="auto", **more)
    return collective(name, label, request, must, aim, 10, variants, tolerance, apart=apart)


ROWS = (
    training("28x28_b128", "step", "training step, 28x28, batch 128", "resnet18", 28, 1, 128, 10,
             0.45, 0.33, floor=1.6),
    training("32x32_b128", "step", "training step, 32x32, batch 128", "resnet18", 32, 3, 128, 10,
             0.5, 0.4),
    training("64x64_b64", "step", "training step, 64x64, batch 64", "resnet18", 64, 3, 64, 6,
             0.7, 0.55),
    training("224x224_b16", "step", "training step, 224x224, batch 16", "resnet18", 224, 3, 16, 3,
             0.8, 0.6),
    training("28x28_b128_1thread", "step", "training step, 28x28, one thread", "resnet18",
             28, 1, 128, 6, 0.45, 0.33, threads=1),
    training("resnet50_224x224_b8", "models", "ResNet50 step, 224x224, batch 8", "resnet50",
             224, 3, 8, 2, 0.9, 0.7),
    plain("mlp_b128", "MLP step, 784-1024-1024-10, batch 128", "mlp",
          {"size": 28, "channels": 1, "batch": 128, "batches": 64}, flops.mlp(128), 60),
    plain("transformer_b16", "transformer step, 4 layers, d 256, 128 tokens, batch 16",
          "transformer", {"tokens": 128, "batch": 16, "batches": 8}, flops.transformer(128, 16), 6),
    inference(1, 30, 64),
    inference(32, 4, 8),
    process("memory", "peak memory of training, 28x28", "MiB", 10, {"compile", "thp"},
            0.5, 0.35),
    process("startup", "process start to first step, 28x28", "s", 1, {"compile"}, 0.05, 0.02),
    *(small_op(kind, label, libtorch)
      for libtorch in (False, True)
      for kind, label in (("forward", "forward"), ("record", "with grad"),
                          ("backward", "backward node"))),
    data("data_pipeline", "data pipeline, images/s per core", "cpu", ("workers_0",), 1, 30, 75),
    data("data_pipeline_wall", "data pipeline, images/s (any workers)", "wall", DATA_VARIANTS,
         None, None, None),
    *(kernels(what, label, threads)
      for what, label in (("conv", "convolutions of the 28x28 step"),
                          ("gemm", "products of the layers' shapes"))
      for threads in (1, 2)),
    all_reduce("all_reduce_44.7MB", "all-reduce 44.7 MB, 2 ranks, one host", GRADIENTS, 1,
               0.33, 0.12),
    all_reduce("all_reduce_1MB", "all-reduce 1 MB, 2 ranks, one host", 1 << 20, 10, 0.33, 0.15),
    all_reduce("all_reduce_4KB", "all-reduce 4 KB, 2 ranks, one host", 4096, 100, 0.25, 0.1),
    all_reduce("all_reduce_44.7MB_4ranks", "all-reduce 44.7 MB, 4 ranks, one host", GRADIENTS, 1,
               0.5, 0.25, ranks=4),
    all_reduce("all_reduce_44.7MB_tcp", "all-reduce 44.7 MB, TCP between two namespaces",
               GRADIENTS, 1, 0.75, 0.5, two_hosts=True),
    ddp("ddp_step_28x28_b64", "DDP step, 28x28, 2 ranks of 1 thread and batch 64", 0.5, 0.3,
        DDP_VARIANTS, RESNET_TOLERANCE),
    ddp("ddp_cost_28x28_b64", "the same against ranks without communication", 1.08, 1.03,
        ("eager",), SAME, apart=True, checked=1),
    on_device("gpu_28x28_eager", "step, 28x28, f32 (TF32), against eager", 28, 1, "f32", EAGER,
              0.2, 0.08, batches=16, window=100),
    on_device("gpu_28x28_graph", "the same against a CUDA graph captured by hand", 28, 1, "f32",
              GRAPHS, 0.77, 0.4, batches=16, window=100),
    Row("gpu_job", "gpu", "10 epochs, process start to accuracy", "job", "s", {"epochs": 10},
        0.15, 0.05, variants=EAGER[1:]),
    on_device("gpu_28x28_compile", "the step against torch.compile", 28, 1, "f32", COMPILED,
              0.67, 0.4, batches=16, window=100),
    on_device("gpu_28x28_bf16", "step, 28x28, bf16-mixed, against AMP + compile", 28, 1,
              "bf16-mixed", COMPILED[:2], 0.67, 0.4, batches=16, window=100),
    on_device("gpu_224x224_bf16", "step, 224x224, bf16-mixed, against AMP + compile", 224, 3,
              "bf16-mixed", COMPILED[:2], 1.0, 0.85, batches=4, window=8),
    device_memory("gpu_memory_28x28", "peak device memory, 28x28, f32",
                  ("gpu_28x28_eager", "gpu_28x28_graph", "gpu_28x28_compile")),
    device_memory("gpu_memory_224x224", "peak device memory, 224x224, bf16-mixed",
                  ("gpu_224x224_bf16",)),
)
NAMES = tuple(row.name for row in ROWS)
VERBS = tuple(dict.fromkeys(row.verb for row in ROWS))
VARIANTS = tuple(dict.fromkeys(v for row in ROWS for v in row.variants))
