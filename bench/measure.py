"""How a row is measured: trial of the peer's variants, check, alternating blocks, medians.

Invariant: a row gets a ratio only if both sides' outputs from the same weights and batches agree
within the row's tolerance; otherwise it has a note that says why. Ratio is cairn / peer.
"""

import functools
import shlex
import statistics
import sys
import time

import collective_rows
import device_rows
from agree import disagreement
from sides import LeftOut, Place, Side, SideError, build_libtorch

LEFT_OUT = "left out by --quick"
PAUSE = 0.1  # seconds between blocks, in which the idle side's threads stop spinning
QUICK_REPEATS = 2
ADAM_BYTES = 28  # an optimizer step's traffic a parameter: reads p, g, m, v and writes p, m, v


def say(text):
    print(text, flush=True)


class Bench:
    def __init__(self, options):
        self.options = options
        self.repeats = QUICK_REPEATS if options.quick else options.repeats
        self.cairn_info = None
        self.peer_info = None
        self.peer_problem = None
        self.libtorch = None
        self.failed = {}  # family of a compiled variant -> why it is not tried again
        self.memory = {}  # row of verb gpu -> what its sides held of the device
        self.deadline = time.monotonic() + (options.time_limit or 1e9)

    def left(self, seconds):
        """So many seconds, or what is left of --time-limit."""
        return max(1.0, min(seconds, self.deadline - time.monotonic()))

    # --- sides -----------------------------------------------------------------------------------

    def threads(self, row):
        return row.threads or self.options.threads

    def cairn(self, row=None, _variant="", place=Place()):
        threads = self.threads(row) if row else self.options.threads
        command = [*place.prefix, *shlex.split(self.options.cairn)]
        return Side("cairn" + place.name, command, threads, place.environment)

    def peer(self, row=None, variant="", place=Place()):
        threads = self.threads(row) if row else self.options.threads
        if row and row.libtorch:
            self.libtorch = self.libtorch or build_libtorch(self.peer_info)
            return Side("LibTorch", [str(self.libtorch)], threads)
        python = self.options.python or sys.executable
        extra = {"THP_MEM_ALLOC_ENABLE": "1"} if "thp" in variant.split("+") else {}
        command = [*place.prefix, python, self.options.peer]
        return Side("peer" + place.name, command, threads, {**extra, **place.environment})

    def find_sides(self):
        """Asks Cairn and, where the Python has it, PyTorch who they are."""
        with self.cairn() as side:
            self.cairn_info = side.ask(
                "info", 600.0, threads=self.options.threads, data=self.options.data
            )
            self.cairn_info["target"] = side.ask("peak", what="fma", threads=1)["target"]
        try:
            with self.peer() as side:
                self.peer_info = side.ask("info", 120.0, threads=self.options.threads)
        except SideError as error:
            self.peer_problem = str(error)

    def setup(self, side, row, variant, limit=600.0, **more):
        request = device_rows.request_for(self, row) if row.verb == "gpu" else row.request
        more.update(variant=variant, threads=self.threads(row), data=self.cairn_info["data"])
        side.ask("setup", limit, **request, **more)

    # --- the peer's variants ---------------------------------------------------------------------

    def reason_against(self, row, variant):
        """Why a variant is not tried, or None."""
        words = variant.split("+")
        for word in words:
            if word in self.peer_info["lacks"]:
                return f"this PyTorch has no {word}"
        if self.options.quick and "compile" in variant:
            return LEFT_OUT
        return self.failed.get(family(row, variant))

    def best_variant(self, row, trial, result):
        """The best of a short trial, each variant in a fresh process; `result` gets the trial's
        values, and why variants were skipped."""
        wanted = set((self.options.variants or "").split(",")) & set(row.variants)
        values, skipped = result["trial"], result["skipped"]
        failed = False
        for variant in row.variants:
            if wanted and variant not in wanted:
                continue
            reason = self.reason_against(row, variant)
            if not reason:
                try:
                    values[variant] = trial(variant)
                    continue
                except SideError as error:
                    reason = str(error)
                    say(f"  {row.name}: skipped {variant}: {reason}")
                    failed = failed or not isinstance(error, LeftOut)
                    if "compile" in variant:
                        self.failed[family(row, variant)] = reason
            skipped[variant] = reason
        if not values:
            kind = SideError if failed else LeftOut
            raise kind(f"peer: {row.name} must run in at least one variant, got none")
        if len(values) > 1:
            tried = ", ".join(f"{v} {value:.4g}" for v, value in values.items())
            say(f"  {row.name}: short trial, {row.unit}: {tried}")
        pick = max if row.higher else min
        return pick(values, key=values.get)

    def compare_trial(self, row, start=None):
        """A trial of one variant of a compare row: the best value of a block, not the median: on a
        busy machine that gives the steadier order. `start` makes the side, if not peer()."""

        def trial(variant):
            limit = self.options.compile_limit if "compile" in variant else 600.0
            with (start or self.peer)(row, variant) as side:
                self.setup(side, row, variant)
                side.ask("run", limit, n=1)  # compiles
                side.ask("run", n=1)
                values = side.ask("run", n=max(2, row.block // 2))["values"]
                return max(values) if row.higher else min(values)

        return trial

    # --- rows ------------------------------------------------------------------------------------

    def run_row(self, row):
        """The row's result; "note" in it says why there is no comparison."""
        result = {
            "row": row.name,
            "verb": row.verb,
            "label": row.label,
            "unit": row.unit,
            "threads": self.threads(row),
            "cairn": None,
            "peer": None,
            "ratio": None,
            "must": row.must,
            "aim": row.aim,
            "higher_is_better": row.higher,
            "floor_must": row.floor,
            "trial": {},
            "skipped": {},  # variant of the peer -> why it was not measured
        }
        measures = {"kernels": self.kernels_row, "compare": self.compare_row}
        for kind, measure in (device_rows.MEASURES | collective_rows.MEASURES).items():
            measures[kind] = functools.partial(measure, self)
        try:
            if self.left(1e9) < device_rows.LEAST_SECONDS and row.kind != "device_memory":
                raise LeftOut("not measured: no time is left")
            measures.get(row.kind, self.process_row)(row, result)
        except SideError as error:
            result["note"] = str(error)
            result["left_out"] = isinstance(error, LeftOut)
        result["met"] = row.met(result["ratio"], result.get("floor_multiple"))
        return result

    def name_of(self, row, variant):
        name = self.peer_info["name"]
        return name.replace("PyTorch", "LibTorch") if row.libtorch else f"{name} {variant}"

    def compare_row(self, row, result):
        variant = row.variants[0]
        if self.peer_info:
            if len(row.variants) > 1:
                variant = self.best_variant(row, self.compare_trial(row), result)
            result["peer_name"] = self.name_of(row, variant)
        with self.cairn(row) as cairn:
            self.setup(cairn, row, "default")
            ours = cairn.ask("check")["outputs"]
            if not self.peer_info:
                result.update(self.blocks(row, {"cairn": cairn}))
                return
            with self.peer(row, variant) as peer:
                self.setup(peer, row, variant)
                limit = self.options.compile_limit + 600.0
                complaint = disagreement(ours, peer.ask("check", limit)["outputs"], row.tolerance)
                if complaint:
                    raise SideError(complaint)
                result.update(self.blocks(row, {"cairn": cairn, "peer": peer}))

    def blocks(self, row, sides):
        """Warm-up, then blocks a side, alternately; who goes first alternates too. The machine's
        peaks are measured directly before and after."""
        values = {name: [] for name in sides}
        for side in sides.values():
            side.ask("run", n=1)
        peaks = [self.peaks(row, sides["cairn"])]
        for repeat in range(self.repeats):
            order = list(sides) if repeat % 2 == 0 else list(reversed(sides))
            for name in order:
                time.sleep(PAUSE)
                values[name] += sides[name].ask("run", n=row.block)["values"]
        peaks.append(self.peaks(row, sides["cairn"]))
        result = figures(values)
        result.update({key: statistics.median(peaks[0][key] + peaks[1][key]) for key in peaks[0]})
        result.update(reached(row, result))
        return result

    def peaks(self, row, cairn):
        measured = {}
        time.sleep(PAUSE)
        threads = self.threads(row)
        if row.flops:
            measured["peak_gflops"] = cairn.ask("peak", what="fma", threads=threads)["gflops"]
        if row.bytes or row.live:
            measured["peak_gbytes"] = cairn.ask("peak", what="memory", threads=threads)["gbytes"]
        return measured

    def process_row(self, row, result):
        """A row measured on fresh processes."""

        def memory(start, variant):
            """MiB at most in use after ten steps."""
            with start(row, variant) as side:
                self.setup(side, row, variant)
                side.ask("run", n=10)
                return side.ask("rss")["bytes"] / 2**20

        def startup(start, variant):
            """Seconds from starting the process until its first training step has finished."""
            with start(row, variant) as side:
                self.setup(side, row, variant)
                side.ask("run", n=1)
                return time.monotonic() - side.started

        measure = {"memory": memory, "startup": startup}[row.kind]
        variant = None
        if self.peer_info:
            variant = self.best_variant(row, lambda v: measure(self.peer, v), result)
            result["peer_name"] = self.name_of(row, variant)
        values = {"cairn": [], "peer": []}
        for _ in range(self.repeats):
            values["cairn"].append(measure(self.cairn, "default"))
            if variant:
                values["peer"].append(measure(self.peer, variant))
        result.update(figures(values))

    def kernels_row(self, row, result):
        repeats = max(3, row.block // 3) if self.options.quick else row.block
        with self.cairn(row) as cairn:
            layers = cairn.ask(
                "layers", **row.request, threads=self.threads(row), repeats=repeats
            )
        fraction = layers["fraction"]
        result.update(
            cairn=layers["gflops"],
            ratio=fraction,
            peak_gflops=layers["gflops"] / fraction,
            reached=fraction,
            bound="fma",
            peer_name="the FMA peak of the same minute",
            layers=layers,
        )


def family(row, variant):
    """What shares a compiled variant's fate."""
    if row.verb == "gpu":
        return row.name, variant
    return row.request.get("model"), row.request.get("mode"), variant


def figures(values):
    """Medians and quartiles of all sides, and the ratio; absent ones are None."""
    result = {}
    for name in dict.fromkeys(("cairn", "peer", *values)):
        measured = values.get(name)
        result[name] = statistics.median(measured) if measured else None
        if measured and len(measured) > 1:
            quartiles = statistics.quantiles(measured, n=4, method="inclusive")
            result[f"{name}_quartiles"] = [quartiles[0], quartiles[2]]
    both = result["cairn"] and result["peer"]
    result["ratio"] = result["cairn"] / result["peer"] if both else None
    return result


def reached(row, result):
    """How much of the machine's peak Cairn's median is, and the multiple of the floor it takes."""
    more = {}
    if row.flops:
        gflops = row.flops / (result["cairn"] * 1e-3) * 1e-9
        more.update(bound="fma", reached=gflops / result["peak_gflops"])
    elif row.bytes:
        gbytes = row.bytes * result["cairn"] * 1e-9
        more.update(bound="memory", reached=gbytes / result["peak_gbytes"])
    if row.live:
        floor = row.flops / result["peak_gflops"] + ADAM_BYTES * row.live / result["peak_gbytes"]
        more.update(floor_ms=floor * 1e-6, floor_multiple=result["cairn"] / (floor * 1e-6))
    return more
