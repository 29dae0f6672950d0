#!/usr/bin/env python3
"""Tests what the benchmark refuses: `python3 bench/selftest.py`, with two fake sides.

Invariant: the standard library is enough; neither Cairn nor PyTorch is asked.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

BENCH = pathlib.Path(__file__).resolve().parent / "bench.py"
SIDE = """
import json, os, sys
RANK = int(os.environ.get("RANK", 0))
ANSWERS = {
    "info": {"name": "fake", "data": "", "lacks": [], "build": "optimized"},
    "peak": {"target": "none"},
    "setup": {},
    "check": {"outputs": OUTPUTS},
    "run": {"values": [1.0 + RANK]},
}
for line in sys.stdin:
    request = json.loads(line)
    if request["cmd"] == "quit":
        break
    print(json.dumps(ANSWERS[request["cmd"]]), flush=True)
"""
NO_TORCH = "raise SystemExit('no PyTorch here')"
OTHER_ON_RANK_1 = SIDE.replace("OUTPUTS", "[[1.0, 2.0 + RANK]]")
FAILS_ON_RANK_1 = SIDE.replace('{"outputs": OUTPUTS}', '{"error": "no"} if RANK else {}')


def side(outputs):
    return f"OUTPUTS = {outputs!r}" + SIDE


ONE, TEAM, HOSTS = (
    ("ops", "op_forward"),
    ("collectives", "all_reduce_4KB"),
    ("collectives", "all_reduce_44.7MB_tcp"),
)
# What is tried, the row, the peer's script against a Cairn that answers [[1.0, 2.0]], the exit
# status, the ratio (None: refused), and what the row's note says ("" for none).
CASES = (
    ("equal outputs", ONE, side([[1.0, 2.0]]), 0, 1.0, ""),
    ("within the tolerance", ONE, side([[1.0, 2.0 + 1e-11]]), 0, 1.0, ""),
    ("beyond the tolerance", ONE, side([[1.0, 2.0 + 1e-6]]), 1, None, "must agree"),
    ("NaN", ONE, side([[1.0, None]]), 1, None, "must agree"),
    ("too few outputs", ONE, side([[1.0]]), 1, None, "of one shape"),
    ("no PyTorch", ONE, NO_TORCH, 0, None, ""),
    ("equal ranks", TEAM, side([[1.0, 2.0]]), 0, 1.0, ""),
    ("another rank's sum", TEAM, OTHER_ON_RANK_1, 1, None, "must agree"),
    ("another rank fails", TEAM, FAILS_ON_RANK_1, 1, None, "peer rank 1: check: no"),
    ("no program ip", HOSTS, side([[1.0, 2.0]]), 0, None, "left out: two network namespaces"),
)


def run(folder, row, peer):
    """Exit status and report of one small row, where no other program is found."""
    cairn, other, out = (folder / name for name in ("cairn.py", "peer.py", "out.json"))
    cairn.write_text(side([[1.0, 2.0]]))
    other.write_text(peer)
    command = [sys.executable, str(BENCH), row[0], "--row", row[1], "--repeats", "2"]
    command += ["--cairn", f"'{sys.executable}' '{cairn}'", "--python", sys.executable]
    command += ["--peer", str(other), "--json", str(out)]
    env = dict(os.environ, PATH=str(folder))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    return done.returncode, json.loads(out.read_text())


def main():
    failures = 0
    for name, tried, peer, status, ratio, note in CASES:
        with tempfile.TemporaryDirectory() as folder:
            got, report = run(pathlib.Path(folder), tried, peer)
        row = report["rows"][0]
        good = got == status and row["ratio"] == ratio
        if ratio and tried is TEAM:
            good = good and row["cairn"] == 2.0  # of the slowest rank
        good = good and (note in row["note"] if note else "note" not in row)
        good = good and (report["peer_problem"] is not None) == (peer == NO_TORCH)
        failures += not good
        print(f"{'ok  ' if good else 'FAIL'} {name}: status {got}, note {row.get('note')}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
