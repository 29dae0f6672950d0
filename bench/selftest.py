#!/usr/bin/env python3
"""Tests what the benchmark refuses: `python3 bench/selftest.py`, with two fake sides.

Invariant: the standard library is enough; neither Cairn nor PyTorch is asked.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

BENCH = pathlib.Path(__file__).resolve().parent / "bench.py"
SIDE = """
import json, sys
ANSWERS = {
    "info": {"name": "fake", "data": "", "lacks": [], "build": "optimized"},
    "peak": {"target": "none"},
    "setup": {},
    "check": {"outputs": OUTPUTS},
    "run": {"values": [1.0]},
}
for line in sys.stdin:
    request = json.loads(line)
    if request["cmd"] == "quit":
        break
    print(json.dumps(ANSWERS[request["cmd"]]), flush=True)
"""
NO_TORCH = "raise SystemExit('no PyTorch here')"


def side(outputs):
    return f"OUTPUTS = {outputs!r}" + SIDE


# What is tried, the peer's script against a Cairn that answers [[1.0, 2.0]], the exit status, and
# what the row's note says ("" for none).
CASES = (
    ("equal outputs", side([[1.0, 2.0]]), 0, ""),
    ("within the tolerance", side([[1.0, 2.0 + 1e-11]]), 0, ""),
    ("beyond the tolerance", side([[1.0, 2.0 + 1e-6]]), 1, "must agree"),
    ("NaN", side([[1.0, None]]), 1, "must agree"),
    ("too few outputs", side([[1.0]]), 1, "of one shape"),
    ("no PyTorch", NO_TORCH, 0, ""),
)


def run(folder, peer):
    """Exit status and report of one small row."""
    cairn, other, out = (folder / name for name in ("cairn.py", "peer.py", "out.json"))
    cairn.write_text(side([[1.0, 2.0]]))
    other.write_text(peer)
    command = [sys.executable, str(BENCH), "ops", "--row", "op_forward", "--repeats", "2"]
    command += ["--cairn", f"'{sys.executable}' '{cairn}'", "--python", sys.executable]
    command += ["--peer", str(other), "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, json.loads(out.read_text())


def main():
    failures = 0
    for name, peer, status, note in CASES:
        with tempfile.TemporaryDirectory() as folder:
            got, report = run(pathlib.Path(folder), peer)
        row = report["rows"][0]
        compared = status == 0 and peer != NO_TORCH
        good = got == status and (row["ratio"] is not None) == compared
        good = good and (note in row["note"] if note else "note" not in row)
        good = good and (report["peer_problem"] is not None) == (peer == NO_TORCH)
        failures += not good
        print(f"{'ok  ' if good else 'FAIL'} {name}: status {got}, note {row.get('note')}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
