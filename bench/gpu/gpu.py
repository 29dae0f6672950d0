#!/usr/bin/env python3
"""`./run gpu`: everything that a machine with an NVIDIA card can show, in one command.

Needs the standard library only. Invariant: it ends within its minutes (9), tries every part
whatever became of the others, and leaves report.txt and report.json in the output folder. The exit
status is 1 where a part failed, 2 for a mistake in the command line, else 0, also where all was
skipped.
"""

import argparse
import datetime
import os
import pathlib
import platform
import signal
import sys

import parts
import places
from runner import Clock, Processes, Report

MINUTES = 9.0


def parse(arguments):
    parser = argparse.ArgumentParser(prog="gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", metavar="DIR", help="a folder that ./run gpu-bundle made")
    parser.add_argument("--output", metavar="DIR", default=str(places.ROOT / "build/gpu"),
                        help="for the report; default: build/gpu")
    parser.add_argument("--quick", action="store_true",
                        help="one epoch, no compiled peers: for a look, not for a claim")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="default: 9")
    parser.add_argument("--data", metavar="DIR", help="a folder with Fashion-MNIST's files")
    parser.add_argument("--python", help="a Python with PyTorch; default: the first one found")
    parser.add_argument("--part", action="append", choices=[name for name, *_ in parts.PARTS],
                        help="only this one, after the build; repeatable")
    parser.add_argument("--rehearse", action="store_true",
                        help="run the parts on the CPU with a few steps each, to try this program")
    options = parser.parse_args(arguments)
    if options.bundle and not os.path.isdir(options.bundle):
        parser.error(f"--bundle must be a folder, got {options.bundle}")
    if options.data and not places.holds_data(options.data):
        parser.error(f"--data must hold {', '.join(places.DATA_FILES)} (plain or .gz), "
                     f"got {options.data}")
    if options.minutes <= 0:
        parser.error(f"--minutes must be above 0, got {options.minutes}")
    return options


def describe(run):
    """The head of the report."""
    card = "none: " + run.no_card
    if run.card:
        c = run.card
        card = f"{c.name}, compute capability {c.capability}, {c.memory / 2**30:.1f} GiB"
        card += f", driver for CUDA {c.driver}"
    return {
        "card": card,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "revision": places.revision() or "unknown",
        "sources": places.sources_digest(),
        "system": f"{platform.platform()}, glibc {platform.libc_ver()[1]}, {os.cpu_count()} CPUs",
        "toolkits": ", ".join(places.toolkits()) or "none",
        "libraries": ", ".join(f"{n} in {f}" for n, f in run.libraries.items()) or "none",
        "pytorch": f"{run.python} ({run.site})" if run.python else "none",
        "data": run.data or "none",
        "options": " ".join(sys.argv[1:]) or "none",
    }


def main(arguments):
    options = parse(arguments)
    output = pathlib.Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    clock, processes = Clock(options.minutes * 60), Processes(output / "log.txt")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends too
    run = parts.Run(options, clock, processes)
    try:
        report = Report(output, describe(run))
        print(f"card: {report.head['card']}", flush=True)
        wanted = [part for part in parts.PARTS
                  if not options.part or part[0] in ("build", *options.part)]
        for place, (name, function, needs) in enumerate(wanted):
            part = parts.run_part(run, name, function, needs)
            report.table = run.table
            report.add(part, complete=place == len(wanted) - 1)
            if name == "build" and wanted[-1][0] == "bench":
                parts.start_warming(run)
    finally:
        processes.stop_all()
        run.scratch.cleanup()
    print("\n" + "\n".join(report.short()))
    print(f"{clock.used():.0f} s; {output}/report.txt and report.json")
    return 1 if report.failed() else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
