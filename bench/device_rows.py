"""How the rows of `./run bench gpu` are measured: steps on a device, its memory, whole programs.

Invariant: a variant of the peer lives in one process from its first step (which may compile for
minutes) to its last measurement, so that nothing is compiled twice; the losses of every variant
that was tried must agree with Cairn's, else the row has a note and its ratio is told as refused.
"""

import contextlib
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

from agree import disagreement
from sides import LeftOut, SideError

LEAST_SECONDS = 15  # for which it is worth to start another process
REHEARSAL_STEPS = 4  # of a window on the CPU
ACCURACY = re.compile(r"test accuracy: ([0-9.]+)")
LOWEST_ACCURACY, WIDEST_GAP = 0.85, 0.03  # of 10 epochs; a seed moves it by about 0.01


def request_for(bench, row):
    """The row's request, on the device that the command line names."""
    request = dict(row.request, device=bench.options.device)
    if bench.options.device == "cpu":
        request["window"] = REHEARSAL_STEPS
    return request


def compiled(variant):
    return "compile" in variant


def start_limit(bench, variant):
    return bench.left(bench.options.compile_limit if compiled(variant) else 600.0)


def first_steps(bench, row, side, variant):
    """Sets a side up and returns the losses of its first steps."""
    limit = start_limit(bench, variant)
    bench.setup(side, row, variant, limit)
    losses = side.ask("check", limit)["outputs"]
    forget_first_steps(bench, side)
    return losses


def forget_first_steps(bench, side):
    """What trying out took of the device is no part of its peak."""
    if bench.options.device != "cpu":
        side.ask("memory", device=bench.options.device, reset=True)


def device_row(bench, row, result):
    with contextlib.ExitStack() as stack:
        cairn = stack.enter_context(bench.cairn(row))
        ours = first_steps(bench, row, cairn, "default")
        peers = stack.enter_context(Peers(bench, row, ours))
        problem = find_peer(bench, row, result, peers)
        sides = {"cairn": cairn, "peer": peers.best} if peers.best else {"cairn": cairn}
        result.update(bench.blocks(row, sides))
        note_memory(bench, row, result, sides)
        if peers.complaint:
            result["refused_ratio"], result["ratio"] = result["ratio"], None
            problem = SideError(peers.complaint)
        if problem:
            raise problem


def find_peer(bench, row, result, peers):
    """Why there is no peer to measure, or None; Cairn's own figure is wanted all the same."""
    if not bench.peer_info:
        return None
    try:
        variant = bench.best_variant(row, peers.trial, result)
    except SideError as error:
        return error
    result["peer_name"] = bench.name_of(row, variant)
    return None


class Peers:
    """The variants of the peer, one after the other; the fastest one's process stays."""

    def __init__(self, bench, row, ours):
        self.bench, self.row, self.ours = bench, row, ours
        self.best, self.best_value = None, None
        self.complaint = None  # of the first variant whose losses are not Cairn's

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.best:
            self.best.__exit__()

    def trial(self, variant):
        if self.bench.left(1e9) < LEAST_SECONDS:
            raise LeftOut("no time is left")
        side = self.bench.peer(self.row, variant)
        kept = False
        try:
            theirs = first_steps(self.bench, self.row, side, variant)
            complaint = disagreement(self.ours, theirs, self.row.tolerance)
            if complaint and not self.complaint:
                self.complaint = f"{variant}: {complaint}"
            value = min(side.ask("run", self.bench.left(600.0), n=2)["values"])
            kept = self.best is None or value < self.best_value
            if kept:
                if self.best:
                    self.best.__exit__()
                self.best, self.best_value = side, value
            return value
        finally:
            if not kept:
                side.__exit__()


def note_memory(bench, row, result, sides):
    """Keeps what both sides held of the device, for the rows of kind device_memory."""
    if bench.options.device == "cpu":
        return
    result["memory"] = {
        name: side.ask("memory", device=bench.options.device) for name, side in sides.items()
    }
    bench.memory[row.name] = result["memory"]


def device_memory_row(bench, row, result):
    """The least that each side's processes of the rows `row.of` held: the allocator's reservation,
    torch.cuda.max_memory_reserved() there."""
    asked = {name: bench.memory[name] for name in row.of if name in bench.memory}
    if not asked:
        raise LeftOut(f"not measured: one of {', '.join(row.of)} must be in the same run")
    result["memory"] = asked
    least = {}
    for side in ("cairn", "peer"):
        held = [memory[side]["reserved"] for memory in asked.values() if side in memory]
        least[side] = min(held) / 2**20 if held else None
    result.update(least)
    if least["peer"]:
        result["ratio"] = least["cairn"] / least["peer"]
        result["peer_name"] = f"{bench.peer_info['name']}, reserved by the allocator"


def run_program(bench, name, command):
    """Seconds from starting a program to its end, and the accuracy that it printed."""
    start = time.monotonic()
    limit = bench.left(600.0)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SideError(f"{name}: the job must end, got: {error}"[:300]) from error
    seconds = time.monotonic() - start
    found = ACCURACY.findall(done.stdout)
    if done.returncode != 0 or not found:
        tail = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise SideError(f"{name}: the job must print an accuracy, got status "
                        f"{done.returncode} ({tail})"[:300])
    return seconds, float(found[-1])


def job_row(bench, row, result):
    options = bench.options
    epochs = 1 if options.quick else row.request["epochs"]
    steps = ["--max-steps", str(REHEARSAL_STEPS)] if options.device == "cpu" else []
    accuracy = result["accuracy"] = {}

    def cairn():
        with tempfile.TemporaryDirectory() as folder:
            command = shlex.split(options.job) + ["--max-epochs", str(epochs), *steps]
            command += ["--data-root", bench.cairn_info["data"], "--output", folder]
            seconds, accuracy["cairn"] = run_program(bench, "cairn", command)
        return seconds

    def peer(variant):
        if bench.left(1e9) < LEAST_SECONDS:
            raise LeftOut("no time is left")
        command = [options.python or sys.executable, options.peer_job, "--epochs", str(epochs)]
        command += [*steps, "--device", options.device, "--data", bench.cairn_info["data"]]
        seconds, accuracy[variant] = run_program(bench, "peer", [*command, "--variant", variant])
        return seconds

    times = {"cairn": [cairn()]}
    if bench.peer_info:
        variant = bench.best_variant(row, peer, result)
        result["peer_name"] = bench.name_of(row, variant)
        times["peer"] = [result["trial"][variant]]
    times["cairn"].append(cairn())
    if bench.peer_info and not options.quick and bench.left(1e9) > 2 * times["peer"][0]:
        times["peer"].append(peer(variant))
    times["cairn"].append(cairn())
    result.update({side: statistics.median(values) for side, values in times.items()})
    if bench.peer_info:
        judge_accuracy(options, accuracy["cairn"], accuracy[variant])
        result["ratio"] = result["cairn"] / result["peer"]


def judge_accuracy(options, ours, theirs):
    """Throws where the two did not learn the same thing."""
    if options.quick or options.device == "cpu":
        return
    if min(ours, theirs) < LOWEST_ACCURACY or abs(ours - theirs) > WIDEST_GAP:
        raise SideError(f"not compared: accuracies must be at least {LOWEST_ACCURACY} and within "
                        f"{WIDEST_GAP}, got cairn {ours} and peer {theirs}")


def warm(bench, selection):
    """Only makes the compiled variants ready: what they compile stays in PyTorch's caches."""
    for row in selection:
        for variant in filter(compiled, row.variants):
            start = time.monotonic()
            try:
                with bench.peer(row, variant) as side:
                    first_steps(bench, row, side, variant)
                text = "ready"
            except SideError as error:
                text = str(error)
            seconds = time.monotonic() - start
            print(f"{row.name} {variant}: {text}, {seconds:.0f} s", flush=True)


MEASURES = {"device": device_row, "device_memory": device_memory_row, "job": job_row}
