"""PyTorch's models and batches for `./run bench`; written out so that torchvision is not needed.

Invariant: names, order and arithmetic are those of Cairn's models (cairn/nn/models/resnet.h,
bench/models.h), and batch i is the same numbers as Cairn's batch i (bench/batches.cpp).
"""

import gzip
import math
import pathlib
import sys

import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "parity"))

MEAN, STD = 0.28604, 0.32025
SIDE = 28  # of an image in the file
IMAGE_HEADER, LABEL_HEADER = 16, 8  # bytes of an IDX file before its data
TOKEN_TENSOR = 3000  # formula's tensor number of batch 0's tokens
WIDTH, HEADS, INNER, BLOCKS = 256, 8, 1024, 4  # of the transformer


def convolution(inputs, outputs, kernel, stride):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Residual(nn.Module):
    """torchvision's BasicBlock (expansion 1) or Bottleneck (expansion 4)."""

    def __init__(self, inputs, width, stride, expansion):
        super().__init__()
        outputs = width * expansion
        shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        if expansion == 4:
            shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        self.count = len(shapes)
        for i, shape in enumerate(shapes, 1):
            setattr(self, f"conv{i}", convolution(*shape))
            setattr(self, f"bn{i}", nn.BatchNorm2d(shape[1]))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.count == 3:
            y = self.bn3(self.conv3(self.relu(y)))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self, depths, expansion, channels, classes):
        super().__init__()
        self.conv1 = convolution(channels, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = 64
        for i, depth in enumerate(depths):
            width, blocks = 64 << i, []
            for place in range(depth):
                blocks.append(Residual(inputs, width, 2 if i and not place else 1, expansion))
                inputs = width * expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(784, 1024)
        self.fc2 = nn.Linear(1024, 1024)
        self.fc3 = nn.Linear(1024, 10)

    def forward(self, x):
        x = functional.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc3(functional.relu(self.fc2(x)))


class EncoderBlock(nn.Module):
    """Pre-norm: x + attention(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, INNER)
        self.down = nn.Linear(INNER, WIDTH)

    def forward(self, x):
        batch, tokens, _ = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, tokens, 3, HEADS, WIDTH // HEADS)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(EncoderBlock() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def make_model(request):
    name = request["model"]
    if name == "resnet18":
        return ResNet((2, 2, 2, 2), 1, request["channels"], 10)
    if name == "resnet50":
        return ResNet((3, 4, 6, 3), 4, request["channels"], 10)
    if name == "mlp":
        return Mlp()
    if name == "transformer":
        return Encoder()
    raise ValueError(f"setup: model must be resnet18, resnet50, mlp or transformer, got {name}")


def fill_from_formula(model):
    """Weights both sides can make; the scales are those of bench/model_job.cpp."""
    import formula

    state = {}
    for place, (name, entry) in enumerate(model.state_dict().items()):
        shape = tuple(entry.shape)
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            continue  # 0 and 1, as constructed
        scale, shift = 0.1, 1.0 if name.endswith("weight") else 0.0
        if len(shape) == 4:
            scale, shift = math.sqrt(6.0 / (shape[0] * shape[2] * shape[3])), 0.0
        elif len(shape) == 2:
            scale, shift = 1.0 / math.sqrt(shape[1]), 0.0
        values = torch.from_numpy(formula.values(place, shape, scale, shift))
        state[name] = values.to(entry.dtype)
    model.load_state_dict(state, strict=False)


def read_idx(folder, stem, header, count):
    """The first `count` bytes after the header of an IDX file, gzipped or not."""
    path = pathlib.Path(folder) / stem
    stream = open(path, "rb") if path.exists() else gzip.open(str(path) + ".gz", "rb")
    with stream:
        stream.read(header)
        data = stream.read(count)
    if len(data) != count:
        raise ValueError(f"{path}: must hold {count} bytes of data, got {len(data)}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


class Images:
    def __init__(self, request, layout):
        self.size, self.channels, self.batch = (request[k] for k in ("size", "channels", "batch"))
        self.layout = layout
        count = request["batches"] * self.batch
        pixels = read_idx(
            request["data"], "train-images-idx3-ubyte", IMAGE_HEADER, count * SIDE * SIDE
        )
        self.images = pixels.reshape(count, 1, SIDE, SIDE)
        labels = read_idx(request["data"], "train-labels-idx1-ubyte", LABEL_HEADER, count)
        self.labels = labels.long()

    def make(self, index):
        rows = slice(index * self.batch, (index + 1) * self.batch)
        x = self.images[rows].float().div_(255).sub_(MEAN).div_(STD)
        if self.size != SIDE:
            nearest = torch.arange(self.size) * SIDE // self.size
            x = x[:, :, nearest][:, :, :, nearest]
        if self.channels != 1:
            x = x.expand(-1, self.channels, -1, -1)
        return x.contiguous(memory_format=self.layout), self.labels[rows].clone()


class Tokens:
    def __init__(self, request):
        self.shape = (request["batch"], request["tokens"], WIDTH)

    def make(self, index):
        import formula

        x = formula.values(TOKEN_TENSOR + index, self.shape, math.sqrt(3.0))
        return torch.from_numpy(x).float(), torch.arange(self.shape[0]) % 10


class Batches:
    """Batch 0, 1, … of request["batches"], then from the front again."""

    def __init__(self, request, layout):
        tokens = request["model"] == "transformer"
        self.source = Tokens(request) if tokens else Images(request, layout)
        self.count, self.index, self.step = request["batches"], 0, 1

    def share(self, rank, size):
        """From now on only every size-th batch, from number `rank` on."""
        self.index, self.step = rank, size

    def next(self):
        batch = self.source.make(self.index % self.count)
        self.index += self.step
        return batch
