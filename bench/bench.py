#!/usr/bin/env python3
"""`./run bench step`: Cairn and PyTorch side by side, alternately, on the same weights and batches.

    bench.py step --cairn BINARY [--python FILE] [--row NAME]... [--json FILE] [--threads 2]
                  [--repeats 5] [--data DIR] [--variants a,b] [--compile-limit SECONDS]

Needs the standard library only. Both sides are processes that read one JSON object per line on
stdin and answer with one on stdout (an answer with "error" is a failure):

    {"cmd": "info"}                 -> {"name": ..., "threads": ..., "cpu_capability": ...}; the
                                       peer also {"variants": [...]}
    {"cmd": "setup", "row": ..., "variant": ..., "threads": n, "weights": "formula" | "default",
     "data": DIR}                   -> {"ms": ...}
    {"cmd": "step", "n": k}         -> {"ms": [k numbers], "losses": [k numbers]}
    {"cmd": "rss"}                  -> {"bytes": peak resident size of the process}
    {"cmd": "quit"}                 ends it

Invariant: a row gets a ratio only if both sides' first five losses from the formula's weights agree
within LOSS_TOLERANCE; otherwise the row is marked and the exit status is 1. Ratio is cairn / peer,
so below 1 Cairn is the faster or smaller one.
"""

import argparse
import json
import math
import os
import pathlib
import select
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time

STEP_ROWS = ("28x28_b128", "32x32_b128", "224x224_b16")
ROWS = (*STEP_ROWS, "peak_memory", "startup")
PROCESS_ROW = "28x28_b128"  # the job of the peak_memory and startup rows
STEPS_PER_BLOCK = {"28x28_b128": 10, "32x32_b128": 10, "224x224_b16": 3}
# Relative, loss by loss. The first is one forward pass: f32 rounding. Later ones follow Adam steps,
# which move an entry by the learning rate even where its gradient is only rounding error, so two
# correct programs part: PyTorch's own layouts differ by up to 4e-6, 0.5 %, 1.1 %, 9 % and 11 %.
LOSS_TOLERANCE = (1e-4, 1e-2, 0.05, 0.2, 0.25)
PAUSE = 0.1  # seconds between blocks, in which the idle side's threads stop spinning
DEFAULT_DATA = "/usr/share/datasets/fashion-mnist"


class SideError(Exception):
    """One side could not do what it was asked; the text says which and why."""


class Side:
    """One process speaking the line protocol; a context manager that ends it on leaving."""

    def __init__(self, name, command, threads):
        self.name = name
        self.log = tempfile.TemporaryFile()
        env = dict(os.environ, PYTHONDONTWRITEBYTECODE="1")
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            env[variable] = str(threads)
        self.started = time.monotonic()
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                env=env,
                start_new_session=True,
            )
        except OSError as error:
            raise SideError(f"{name}: {command[0]} must start, got: {error.strerror}") from error
        self.pending = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            try:
                self.process.stdin.write(b'{"cmd": "quit"}\n')
                self.process.stdin.flush()
                self.process.stdin.close()
                self.process.wait(timeout=5)
            except (OSError, subprocess.TimeoutExpired):
                self._kill()
        self.process.stdout.close()
        self.log.close()

    def _kill(self):
        """Ends the process and what it started, such as compilers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _fail(self, what):
        self.log.seek(0)
        tail = self.log.read().decode(errors="replace").strip().splitlines()[-3:]
        hint = f" ({' | '.join(tail)})" if tail else ""
        raise SideError(f"{self.name}: {what}{hint}")

    def ask(self, command, limit=600.0, **arguments):
        """The answer to one command; SideError when it fails or takes more than `limit` seconds."""
        try:
            self.process.stdin.write(json.dumps({"cmd": command, **arguments}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            self._fail(f"{command} must be answered, got a closed pipe")
        deadline = time.monotonic() + limit
        while b"\n" not in self.pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                self._kill()
                self._fail(f"{command} must take at most {limit:.0f} s, got no answer")
            chunk = os.read(self.process.stdout.fileno(), 1 << 16)
            if not chunk:
                self._fail(f"{command} must be answered, got end of output")
            self.pending += chunk
        line, self.pending = self.pending.split(b"\n", 1)
        try:
            reply = json.loads(line)
        except ValueError:
            self._fail(f"{command} must be answered with JSON, got {line[:80]!r}")
        if "error" in reply:
            self._fail(f"{command}: {reply['error']}")
        return reply


class Bench:
    def __init__(self, options):
        self.options = options
        self.cairn_command = shlex.split(options.cairn)
        self.peer_command = None
        self.peer_info = None
        self.skipped = set()  # variants that failed or took too long: said once, not tried again

    def cairn(self):
        return Side("cairn", self.cairn_command, self.options.threads)

    def peer(self):
        return Side("peer", self.peer_command, self.options.threads)

    def setup(self, side, row, variant, weights="formula", limit=600.0):
        side.ask(
            "setup",
            limit,
            row=row,
            variant=variant,
            threads=self.options.threads,
            weights=weights,
            data=self.options.data,
        )

    def find_peer(self):
        """Sets peer_command when the Python has PyTorch; says so when it has not."""
        script = pathlib.Path(self.options.peer)
        python = self.options.python or sys.executable
        try:
            self.peer_command = [python, str(script)]
            with self.peer() as side:
                self.peer_info = side.ask("info", 120.0)
        except SideError as error:
            self.peer_command = None
            say(f"No PyTorch: {error}")
            say("Cairn's own figures follow. `./run setup --bench` makes an environment with it.")

    def variants(self, compiled=True):
        wanted = self.options.variants.split(",") if self.options.variants else None
        for variant in self.peer_info["variants"]:
            is_compiled = "compile" in variant
            if (wanted and variant not in wanted) or (is_compiled and not compiled):
                continue
            if variant not in self.skipped:
                yield variant

    def best_variant(self, row):
        """The variant with the fastest step of a short trial, each in a fresh process.

        The fastest, not the median: on a busy machine that is the steadier order.
        """
        fastest = {}
        for variant in self.variants():
            limit = self.options.compile_limit if "compile" in variant else 600.0
            try:
                with self.peer() as side:
                    self.setup(side, row, variant)
                    side.ask("step", limit, n=1)  # compiles
                    side.ask("step", n=2)
                    fastest[variant] = min(side.ask("step", n=STEPS_PER_BLOCK[row])["ms"])
            except SideError as error:
                self.skipped.add(variant)
                say(f"  {row}: skipped {variant}: {error}")
        if not fastest:
            raise SideError(f"peer: {row} must run in at least one variant, got none")
        tried = ", ".join(f"{v} {ms:.0f}" for v, ms in fastest.items())
        say(f"  {row}: fastest of a short trial, ms: {tried}")
        return min(fastest, key=fastest.get)

    def step_row(self, row):
        result = {"row": row, "unit": "ms/step"}
        variant = self.best_variant(row) if self.peer_command else None
        block = STEPS_PER_BLOCK[row]
        with self.cairn() as cairn:
            self.setup(cairn, row, "default")
            sides = {"cairn": cairn}
            times = {"cairn": [], "peer": []}
            losses = {"cairn": cairn.ask("step", n=len(LOSS_TOLERANCE))["losses"]}
            if not self.peer_command:
                self._blocks(sides, times, block)
                return {**result, **figures(times, None)}
            with self.peer() as peer:
                sides["peer"] = peer
                self.setup(peer, row, variant)
                losses["peer"] = peer.ask("step", n=len(LOSS_TOLERANCE))["losses"]
                complaint = compare_losses(losses["cairn"], losses["peer"])
                if complaint:
                    return {**result, **figures({}, variant), "note": complaint}
                self._blocks(sides, times, block)
        return {**result, **figures(times, variant)}

    def _blocks(self, sides, times, block):
        """Warm-up, then `repeats` blocks a side, alternately; who goes first alternates too."""
        for side in sides.values():
            side.ask("step", n=2)
        for repeat in range(self.options.repeats):
            order = list(sides) if repeat % 2 == 0 else list(reversed(sides))
            for name in order:
                time.sleep(PAUSE)
                times[name] += sides[name].ask("step", n=block)["ms"]

    def _peak_memory(self, start, variant):
        """MiB of a fresh process after ten steps."""
        with start() as side:
            self.setup(side, PROCESS_ROW, variant, weights="default")
            side.ask("step", n=10)
            return side.ask("rss")["bytes"] / 2**20

    def _startup(self, start, variant):
        """Seconds from starting the process until its first training step has finished."""
        with start() as side:
            self.setup(side, PROCESS_ROW, variant, weights="default")
            side.ask("step", n=1)
            return time.monotonic() - side.started

    def process_row(self, row, unit, measure):
        """A row measured on fresh processes; the peer is its best variant that is not compiled."""
        variant = None
        if self.peer_command:
            trial = {v: measure(self.peer, v) for v in self.variants(compiled=False)}
            if not trial:
                raise SideError(f"peer: {row} needs a variant that is not compiled, got none")
            variant = min(trial, key=trial.get)
            tried = ", ".join(f"{v} {value:.2f}" for v, value in trial.items())
            say(f"  {row}: trial in {unit}: {tried}")
        values = {"cairn": [], "peer": []}
        for _ in range(self.options.repeats):
            values["cairn"].append(measure(self.cairn, "default"))
            if variant:
                values["peer"].append(measure(self.peer, variant))
        return {"row": row, "unit": unit, **figures(values, variant)}

    def run_row(self, row):
        if row == "peak_memory":
            result = self.process_row(row, "MiB", self._peak_memory)
        elif row == "startup":
            result = self.process_row(row, "s", self._startup)
        else:
            result = self.step_row(row)
        if result["peer_name"]:
            result["peer_name"] = f"{self.peer_info['name']} {result['peer_name']}"
        return result


def figures(values, variant):
    """cairn, peer (medians) and ratio of two lists; absent ones are None."""
    median = {name: statistics.median(v) if v else None for name, v in values.items()}
    cairn, peer = median.get("cairn"), median.get("peer")
    ratio = cairn / peer if cairn and peer else None
    return {"cairn": cairn, "peer": peer, "ratio": ratio, "peer_name": variant}


def compare_losses(cairn, peer):
    """None when the losses agree; otherwise what does not."""
    if len(cairn) != len(LOSS_TOLERANCE) or len(peer) != len(LOSS_TOLERANCE):
        return f"not compared: must have {len(LOSS_TOLERANCE)} losses, got {cairn} and {peer}"
    for step, (ours, theirs, tolerance) in enumerate(zip(cairn, peer, LOSS_TOLERANCE)):
        # JSON has no NaN, so a side may send null.
        bad = ours is None or theirs is None or not math.isfinite(ours) or not math.isfinite(theirs)
        if bad or abs(ours - theirs) > tolerance * abs(theirs):
            return (
                f"not compared: loss {step + 1} must agree within {tolerance:g} (relative), "
                f"got cairn {ours} and peer {theirs}"
            )
    return None


def say(text):
    print(text, flush=True)


def table(rows):
    def number(value, digits):
        return "-" if value is None else f"{value:.{digits}f}"

    lines = [("row", "cairn", "peer", "unit", "ratio", "peer_name")]
    for row in rows:
        digits = 3 if row["unit"] == "s" else 1
        lines.append(
            (
                row["row"],
                number(row["cairn"], digits),
                number(row["peer"], digits),
                row["unit"],
                number(row["ratio"], 3),
                row.get("note") or row["peer_name"] or "-",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    for line in lines:
        cells = [text.ljust(width) for text, width in zip(line, widths)]
        say("  ".join([*cells, line[5]]))


def machine():
    model = "unknown CPU"
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}"


def parse(arguments):
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(prog="bench", description="Cairn and PyTorch side by side")
    parser.add_argument("benchmark", choices=["step"])
    parser.add_argument("--cairn", required=True, help="program (with arguments) of the Cairn side")
    parser.add_argument("--python", help="Python with PyTorch (default: the one running this)")
    parser.add_argument("--peer", default=str(here / "peer_torch.py"), help="script of the peer")
    parser.add_argument("--row", action="append", choices=ROWS, help="only this row; repeatable")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="blocks (or processes) a side")
    parser.add_argument("--data", default=DEFAULT_DATA, help="folder with Fashion-MNIST")
    parser.add_argument("--variants", help="only these of the peer's variants, comma-separated")
    parser.add_argument("--compile-limit", type=float, default=300.0, metavar="SECONDS")
    options = parser.parse_args(arguments)
    if options.threads < 1 or options.repeats < 1:
        parser.error("--threads and --repeats must be at least 1")
    return options


def main(arguments):
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that both sides are ended too
    bench = Bench(options)
    failed = False
    try:
        with bench.cairn() as side:
            info = side.ask("info", 60.0)
        bench.find_peer()
    except SideError as error:
        sys.exit(f"bench: {error}")
    say(f"{machine()}; {options.threads} threads a side")
    if os.getloadavg()[0] > 0.5:
        say("warning: the machine is busy, or was a minute ago; the figures will be noisy")
    for side_info in (info, bench.peer_info or {}):
        if side_info:
            shown = {k: v for k, v in side_info.items() if k not in ("name", "variants")}
            say(f"{side_info.get('name')}: " + ", ".join(f"{k} {v}" for k, v in shown.items()))
    rows = []
    for row in options.row or ROWS:
        try:
            rows.append(bench.run_row(row))
        except SideError as error:
            unit = {"peak_memory": "MiB", "startup": "s"}.get(row, "ms/step")
            rows.append({"row": row, "unit": unit, **figures({}, None), "note": str(error)})
        failed = failed or "note" in rows[-1]
    table(rows)
    say("ratio = cairn / peer, each the median: below 1 Cairn is faster or smaller")
    if options.json:
        keys = ("row", "cairn", "peer", "unit", "ratio", "peer_name", "note")
        ordered = [{key: row[key] for key in keys if key in row} for row in rows]
        with open(options.json, "w") as out:
            json.dump(ordered, out, indent=2)
            out.write("\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
