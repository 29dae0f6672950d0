"""What a run prints and writes: the head, the table, the kernels of the layers, and JSON.

Invariant: every row that was asked for appears, with its reason where it has no ratio.
"""

import json
import os
import pathlib

from measure import say

FLAGS = ("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni")
FLAGS += ("avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve")  # that decide the speed


def machine():
    model, flags = "unknown CPU", ""
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = (part.strip() for part in line.partition(":"))
            if name == "model name":
                model = value
            elif name in ("flags", "Features"):
                flags = " ".join(flag for flag in FLAGS if flag in value.split())
    except OSError:
        pass
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "flags": flags,
        "load": round(os.getloadavg()[0], 2),
    }


def head(machine_info, bench):
    m = machine_info
    threads = bench.options.threads
    say(f"{m['cpu']}, {m['cpus']} CPUs, load {m['load']:.2f}, {threads} threads a side")
    say(f"CPU flags: {m['flags']}")
    if m["load"] > 0.5:
        say("warning: the machine is busy, or was a minute ago; the figures will be noisy")
    for info in (bench.cairn_info, bench.peer_info):
        if info:
            hidden = ("name", "folder", "lacks", "data")
            shown = ", ".join(f"{k} {v}" for k, v in info.items() if k not in hidden)
            say(f"{info['name']}: {shown}")
    if bench.cairn_info.get("build") != "optimized":
        say("WARNING: CAIRN IS NOT AN OPTIMIZED BUILD: these figures say nothing about its speed")
    if bench.peer_problem:
        say(f"No PyTorch: {bench.peer_problem}")
        say("Cairn's own figures follow. `./run setup --bench` makes an environment with it.")


def number(value, digits=4):
    """`digits` significant digits, and no exponent."""
    if value is None:
        return "-"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:,.{max(0, digits - max(whole, 1))}f}"


def ratio_text(row):
    if row["ratio"] is None:
        return "-"
    return f"{number(row['ratio'], 3)}x" if row["unit"] == "images/s" else f"{row['ratio']:.3f}"


def peer_text(row):
    """The peer's name with the smallest sets of words that it had to do without, or the note."""
    skipped = {variant: set(variant.split("+")) for variant in row["skipped"]}
    least = [v for v, words in skipped.items() if not any(s < words for s in skipped.values())]
    without = f" (no {', '.join(least)})" if least else ""
    return row.get("note") or row.get("peer_name", "-") + without


def line(row):
    """What a row gave, as soon as it has ended."""
    if row["ratio"] is None:
        return f"  {row['row']}: cairn {number(row['cairn'])} {row['unit']}; {peer_text(row)}"
    peer = "" if row["peer"] is None else f", peer {number(row['peer'])}"
    met = f", met: {row['met']}" if row["met"] else ""
    return (
        f"  {row['row']}: cairn {number(row['cairn'])}{peer} {row['unit']}, "
        f"ratio {ratio_text(row)}{met}; {peer_text(row)}"
    )


def table(rows):
    lines = [("row", "cairn", "peer", "unit", "ratio", "must", "aim", "met", "reached", "peer")]
    for row in rows:
        reached = "-"
        if row.get("reached") is not None:
            reached = f"{100 * row['reached']:.0f}% {row['bound']}"
        lines.append(
            (
                row["row"],
                number(row["cairn"]),
                number(row["peer"]),
                row["unit"],
                ratio_text(row),
                "-" if row["must"] is None else f"{row['must']:g}",
                "-" if row["aim"] is None else f"{row['aim']:g}",
                row["met"] or "-",
                reached,
                peer_text(row),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]) - 1)]
    for line in lines:
        say("  ".join([*(text.ljust(width) for text, width in zip(line, widths)), line[-1]]))
    say(
        "ratio = cairn / peer, each the median: below 1 Cairn is faster or smaller, in images/s "
        "above 1\nreached = Cairn's share of the FMA peak (FLOPs on valid taps only) or of the "
        "memory bandwidth,\nmeasured directly before and after the row; or of what plain sockets "
        "(not iperf3) carry in both\ndirections at once, measured in turns with it"
    )
    for row in rows:
        if row.get("floor_multiple"):
            say(
                f"{row['row']}: {row['floor_multiple']:.2f} times the measured floor of "
                f"{row['floor_ms']:.1f} ms (FLOPs at the peak, optimizer's bytes at the bandwidth)"
                + (f"; must be at most {row['floor_must']:g}" if row.get("floor_must") else "")
            )


def layers(row):
    """Kernel by kernel, of one row of kind `kernels`."""
    found = row.get("layers")
    if not found:
        return
    percent = 100 * found["fraction"]
    say(f"\n{row['label']}: {found['gflops']:.0f} GFLOP/s, {percent:.1f}% of the peak")
    say(f"{'line':34} {'times':>5} {'GFLOP':>8}   ms and % of the peak of each kernel")
    for line in found["lines"]:
        kernels = "  ".join(
            f"{k['kernel']:5} {k['ms']:9.4f} {100 * k['fraction']:5.1f}%" for k in line["kernels"]
        )
        say(f"{line['name']:34} {line['times']:5} {line['gflop']:8.4f}   {kernels}")


def write_json(path, machine_info, bench, rows, complete):
    report = {
        "machine": machine_info,
        "cairn": bench.cairn_info,
        "peer": bench.peer_info,
        "peer_problem": bench.peer_problem,
        "threads": bench.options.threads,
        "repeats": bench.repeats,
        "quick": bench.options.quick,
        "variants": bench.options.variants,
        "compile_limit_s": bench.options.compile_limit,
        "complete": complete,
        "rows": rows,
    }
    with open(path, "w") as out:
        json.dump(report, out, indent=2)
        out.write("\n")
