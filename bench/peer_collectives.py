"""PyTorch's ranks for `./run bench collectives`: Gloo's all-reduce, and DistributedDataParallel.

Invariant: the ranks' tensors and losses are those of bench/collectives_job.cpp, and a measurement
whose result is wrong is an error, not a figure.
"""

import datetime
import time

import torch
from torch import distributed

TIMEOUT = datetime.timedelta(seconds=60)  # as Cairn's groups have it


def join_group():
    distributed.init_process_group("gloo", timeout=TIMEOUT)


def given(numel, rank):
    return ((torch.arange(numel) + 37 * rank) % 1009 - 504).float()


class AllReduceJob:
    """Milliseconds of one of `calls` all-reduces in a row, each of what the one before has left."""

    def __init__(self, request):
        join_group()
        self.calls, numel = request["calls"], request["bytes"] // 4
        size = distributed.get_world_size()
        self.growth = float(size ** (self.calls - 1))
        self.own = given(numel, distributed.get_rank())
        self.wanted = sum(given(numel, rank) for rank in range(size)) * self.growth
        self.tensor = torch.empty(numel)

    def check(self):
        self.measure()
        weights = torch.arange(self.tensor.numel()) % 7 + 1
        return [[(self.tensor.double() / self.growth * weights).sum().item()]]

    def run(self, n):
        return [self.measure() for _ in range(n)]

    def measure(self):
        self.tensor.copy_(self.own)
        distributed.barrier()
        start = time.perf_counter()
        for _ in range(self.calls):
            distributed.all_reduce(self.tensor)
        took = time.perf_counter() - start
        if not torch.equal(self.tensor, self.wanted):
            raise ValueError("run: the sum must be right, got other values")
        return took * 1e3 / self.calls


class DdpJob:
    """Training steps of one rank on its share of the batches; `job` is the same for one process."""

    def __init__(self, request, job):
        join_group()
        job.batches.share(distributed.get_rank(), distributed.get_world_size())
        views = "bucket_view" in request["variant"].split("+")
        job.model = torch.nn.parallel.DistributedDataParallel(
            job.model, gradient_as_bucket_view=views
        )
        self.check, self.run = job.check, job.run
