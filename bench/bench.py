#!/usr/bin/env python3
"""`./run bench`: Cairn and PyTorch side by side, alternately, on the same weights and batches.

Needs the standard library only; PyTorch lives in the Python of --python. Invariant: the exit status
is 0 only if no comparison was refused (1) and the command line made sense (2). What makes it
refuse is tested by `python3 bench/selftest.py`.
"""

import argparse
import pathlib
import shlex
import signal
import sys

import device_rows
import plot
import report
import rows as table
from measure import Bench, say
from sides import SideError


def comma_list(known):
    def check(text):
        unknown = [word for word in text.split(",") if word not in known]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"must be of {', '.join(known)}, got {', '.join(map(repr, unknown))}"
            )
        return text

    return check


def at_least_one(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def parse(arguments):
    here = pathlib.Path(__file__).resolve().parent
    built = here.parent / "build" / "bin"
    parser = argparse.ArgumentParser(prog="bench", description="Cairn and PyTorch side by side")
    parser.add_argument(
        "benchmark", nargs="?", default="all", choices=["all", *table.VERBS],
        help="default: all but gpu"
    )
    parser.add_argument("--row", action="append", choices=table.NAMES, metavar="NAME",
                        help="only this row; repeatable")
    parser.add_argument("--list", action="store_true", help="print the rows' names and end")
    parser.add_argument("--json", metavar="FILE", help="write the report there")
    parser.add_argument("--svg", metavar="FILE", help="write a plot of the ratios there")
    parser.add_argument("--threads", type=at_least_one, default=2, help="a side; default: 2")
    parser.add_argument("--repeats", type=at_least_one, default=5,
                        help="blocks (or processes) a side; default: 5")
    parser.add_argument("--quick", action="store_true",
                        help="fewer repeats, no compiled variants: for a look, not for a claim")
    parser.add_argument("--variants", type=comma_list(table.VARIANTS), metavar="A,B",
                        help="only these of the peer, in the rows that have them: "
                        + ", ".join(table.VARIANTS))
    parser.add_argument("--compile-limit", type=float, default=400.0, metavar="SECONDS",
                        help="longest wait for torch.compile; default: 400")
    parser.add_argument("--data", default="", help="folder with Fashion-MNIST's files")
    parser.add_argument("--cairn", default=shlex.quote(str(built / "cairn_bench")),
                        help="program (with arguments) of the Cairn side; default: the built one")
    parser.add_argument("--python", help="Python with PyTorch (default: the one running this)")
    parser.add_argument("--peer", default=str(here / "peer_torch.py"), help="script of the peer")
    gpu = parser.add_argument_group("rows of verb gpu")
    gpu.add_argument("--device", default="cuda:0",
                     help="cpu: a rehearsal with few steps; default: cuda:0")
    gpu.add_argument("--time-limit", type=float, metavar="SECONDS",
                     help="rows that would start after it are left out")
    gpu.add_argument("--warm", action="store_true",
                     help="only compile what the rows' peers need, for a later run")
    gpu.add_argument("--job", default=shlex.quote(str(built / "fashion_mnist")),
                     help="program (with arguments) of the job; default: the built one")
    gpu.add_argument("--peer-job", default=str(here / "peer_job.py"), help="script of the peer")
    return parser.parse_args(arguments)


def chosen(options):
    for row in table.ROWS:
        if options.row and row.name not in options.row:
            continue
        if options.benchmark == row.verb or (options.benchmark == "all" and row.verb != "gpu"):
            yield row


def die(text, status):
    print(f"bench: {text}", file=sys.stderr)
    sys.exit(status)


def check_target(path):
    """Ends the program now where a report could not be written in the end."""
    new = not pathlib.Path(path).exists()
    try:
        open(path, "a").close()
        if new:
            pathlib.Path(path).unlink()
    except OSError as error:
        die(f"{path} must be a file to write to, got: {error.strerror}", 2)


def write(options, machine, bench, results, complete):
    if options.json:
        report.write_json(options.json, machine, bench, results, complete)
    if options.svg:
        sides = f"{bench.cairn_info['name']}, {bench.peer_info['name'] if bench.peer_info else '-'}"
        head = f"{machine['cpu']}, {options.threads} threads a side; {sides}"
        pathlib.Path(options.svg).write_text(plot.svg(results, head))


def main(arguments):
    options = parse(arguments)
    selection = list(chosen(options))
    if options.list:
        for row in selection:
            say(f"{row.name:28} {row.verb:10} {row.label}")
        return 0
    if not selection:
        wrong = ", ".join(options.row)
        die(f"--row must name rows of {options.benchmark}, got {wrong}", 2)
    for target in filter(None, (options.json, options.svg)):
        check_target(target)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that both sides are ended too
    machine = report.machine()
    bench = Bench(options)
    try:
        bench.find_sides()
    except SideError as error:
        die(error, 1)
    card = bench.cairn_info.get("cuda", "none")
    if options.device != "cpu" and selection[0].verb == "gpu" and card.startswith("none"):
        die(f"the rows of gpu need a CUDA device, got {card}", 2)
    if options.warm:
        device_rows.warm(bench, selection)
        return 0
    report.head(machine, bench)
    results = []
    try:
        for row in selection:
            say(f"{row.name} …")
            results.append(bench.run_row(row))
            say(report.line(results[-1]))
    finally:  # what there is, also after Ctrl-C
        write(options, machine, bench, results, complete=len(results) == len(selection))
    say("")
    report.table(results)
    for result in results:
        report.layers(result)
    if bench.peer_problem:
        say("\nNothing was compared with PyTorch: this machine's Python has none that works.")
    return 1 if any("note" in row and not row["left_out"] for row in results) else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
