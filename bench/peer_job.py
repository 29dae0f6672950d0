#!/usr/bin/env python3
"""The job as a PyTorch program: ResNet18 on Fashion-MNIST that lies on the device.

The peer of the row gpu_job, whose Cairn side is examples/fashion_mnist.cpp. Invariant: it does what
that program does (epochs over shuffled batches of 128, a validation after each, a test at the end)
and prints "test accuracy: 0.9000" last.
"""

import argparse

import torch
from torch.nn import functional

import peer_models

TEST_FILES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10000)
TRAIN_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 60000)


def load(folder, files, device, layout):
    images, labels, count = files
    size = peer_models.SIDE * peer_models.SIDE
    pixels = peer_models.read_idx(folder, images, peer_models.IMAGE_HEADER, count * size)
    target = peer_models.read_idx(folder, labels, peer_models.LABEL_HEADER, count)
    x = pixels.to(device).reshape(count, 1, peer_models.SIDE, peer_models.SIDE)
    x = x.float().div_(255).sub_(peer_models.MEAN).div_(peer_models.STD)
    return x.contiguous(memory_format=layout), target.to(device).long()


def accuracy(model, images, labels, batch):
    model.eval()
    right = 0
    with torch.no_grad():
        for x, target in zip(images.split(batch), labels.split(batch)):
            right += (model(x).argmax(1) == target).sum()
    return right.item() / len(labels)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--max-steps", type=int, default=-1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--data", required=True, help="folder with the four files")
    parser.add_argument("--variant", default="channels_last", help="channels_last, fused_adam, +")
    return parser.parse_args()


def main():
    options = parse()
    words = set(options.variant.split("+"))
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if "channels_last" in words else torch.contiguous_format
    train = load(options.data, TRAIN_FILES, options.device, layout)
    test = load(options.data, TEST_FILES, options.device, layout)
    model = peer_models.make_model({"model": "resnet18", "channels": 1})
    model.to(options.device, memory_format=layout)
    adam = {"fused": True} if "fused_adam" in words else {}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, **adam)
    steps = 0
    for _ in range(options.epochs):
        model.train()
        order = torch.randperm(len(train[1]), device=options.device)
        for places in order.split(options.batch):
            if steps == options.max_steps:
                break
            optimizer.zero_grad()
            functional.cross_entropy(model(train[0][places]), train[1][places]).backward()
            optimizer.step()
            steps += 1
        accuracy(model, *test, options.batch)
    print(f"test accuracy: {accuracy(model, *test, options.batch):.4f}")


if __name__ == "__main__":
    main()
