#!/usr/bin/env python3
"""Tests how `./run gpu` takes failures: `python3 bench/gpu/selftest.py`, with fake programs.

Invariant: the standard library is enough; no card, CUDA or PyTorch is asked, whatever is there.
"""

import contextlib
import io
import json
import pathlib
import sys
import tarfile
import tempfile
import time
import unittest
from unittest import mock

import gpu
import parts
import places

CARD = places.Card("Pretend", "9.0", 80 << 30, "13.0", None)
CHECK = """
case "$1 $2" in
  "info "*) echo Cairn ;;
  "check --list") printf 'relu elementwise f64 f32\\nadd elementwise f32\\nsoftmax loss f32\\n' ;;
  *) for op in relu add softmax; do case " $* " in *" $op "*)
       [ $op = add ] && state=STATE || state=ok
       echo "$op f32 cuda:0 3 $state"; [ $state = ok ] || bad=1 ;; esac; done; exit $bad ;;
esac
"""
JOB = """
case "$*" in *--help*) exit 0 ;; esac
while [ $# -gt 0 ]; do [ "$1" != --output ] || echo '{"test_accuracy": ACCURACY,
  "step_ms_median": 0.5}' > "$2/result.json"; shift; done
echo 'test accuracy: ACCURACY'
"""
TESTS = "echo 'All tests passed (9 assertions in 3 test cases)'"
SANITIZER = "echo '========= ERROR SUMMARY: 0 errors'"
BENCH = """
import json, sys
answers = {"info": {"name": "fake", "data": "", "cuda": "Pretend", "build": "optimized"},
           "peak": {"target": "none"}, "setup": {}, "check": {"outputs": [[1.0]] * 5},
           "run": {"values": [0.5]}, "memory": {"reserved": 1 << 20, "allocated": 1 << 20}}
for line in sys.stdin:
    request = json.loads(line)
    if request["cmd"] == "quit":
        break
    print(json.dumps(answers[request["cmd"]]), flush=True)
"""


class Machine:
    """A machine that has what its arguments say, and a bundle with pretending programs."""

    def __init__(self, folder, card=CARD, architecture="90", state="ok", tests=TESTS,
                 sanitizer=SANITIZER, accuracy=0.9, start="", fallback=None):
        self.folder, self.card = folder, card
        self.bundle, self.out = folder / "bundle", folder / "out"
        self.bundle.mkdir()
        (folder / "bin").mkdir()
        manifest = {"architectures": [architecture], "revision": "pretend"}
        (self.bundle / "manifest.json").write_text(json.dumps(manifest))
        for name in places.DATA_FILES:
            (folder / name).write_text("")
        self.script("cairn", start + CHECK.replace("STATE", state))
        self.script("cairn_gpu_tests", f'[ "$1" = --help ] && exit 0\n{tests}')
        self.script("fashion_mnist", JOB.replace("ACCURACY", str(accuracy)))
        self.script("cairn_bench", BENCH, sys.executable)
        self.tools = {"compute-sanitizer": self.script("sanitizer", sanitizer)}
        with tarfile.open(self.bundle / parts.PROGRAM_FILE, "w:xz") as tar:
            tar.add(folder / "bin", "bin")
            if fallback:
                tar.add(folder / "bin/cairn", f"lib/fallback/{fallback}")

    def script(self, name, text, interpreter="/bin/sh"):
        path = self.folder / "bin" / name
        path.write_text(f"#!{interpreter}\n{text}\n")
        path.chmod(0o755)
        return str(path)

    def run(self, *words):
        """Exit status and report."""
        with contextlib.ExitStack() as stack:
            for name, value in (
                ("find_card", (self.card, "" if self.card else "no NVIDIA driver")),
                ("python_with_torch", (sys.executable, self.folder)),
                ("find_libraries", {}),
            ):
                stack.enter_context(mock.patch.object(places, name, lambda *_, v=value: v))
            find = lambda name, python=None: self.tools.get(name)
            stack.enter_context(mock.patch.object(places, "find_tool", find))
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            status = gpu.main(["--bundle", str(self.bundle), "--output", str(self.out), "--quick",
                               "--data", str(self.folder), *words])
        return status, json.loads((self.out / "report.json").read_text())


class GpuTest(unittest.TestCase):
    def setUp(self):
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.folder = pathlib.Path(place.name)

    def run_on(self, *words, **machine):
        status, report = Machine(self.folder, **machine).run(*words)
        return status, report, {part["name"]: part for part in report["parts"]}

    def states(self, found):
        return {name: part["status"] for name, part in found.items()}

    def test_no_card_skips_everything(self):
        status, report, found = self.run_on(card=None)
        self.assertEqual(status, 0)
        self.assertEqual(set(self.states(found).values()), {"skipped"})
        self.assertEqual(list(found), [name for name, *_ in parts.PARTS])
        self.assertTrue(report["complete"])
        self.assertIn("no NVIDIA driver", (self.folder / "out/report.txt").read_text())

    def test_all_well(self):
        status, report, found = self.run_on()
        self.assertEqual(set(self.states(found).values()), {"ok"}, found)
        self.assertEqual(status, 0)
        self.assertEqual(found["ops"]["details"], {"rows": 3, "failed": []})
        self.assertEqual(found["sanitizer"]["details"]["ops"], ["relu", "add", "softmax"])
        rows = {row["row"]: row for row in found["bench"]["details"]["rows"]}
        self.assertEqual(rows["gpu_28x28_eager"]["cairn"], 0.5)
        self.assertEqual(rows["gpu_memory_28x28"]["cairn"], 1.0)

    def test_a_failed_part_costs_no_other(self):
        status, _, found = self.run_on(state="FAILED")
        self.assertEqual(status, 1)
        self.assertEqual(found["ops"]["status"], "FAILED")
        self.assertIn("1 of 3 rows failed: add f32", found["ops"]["line"])
        self.assertEqual(found["tests"]["status"], "ok")
        self.assertEqual(found["training"]["status"], "ok")

    def test_a_part_that_hangs_is_stopped_with_what_it_started(self):
        with mock.patch.dict(parts.BUDGETS, tests=0.5):
            began = time.monotonic()
            status, _, found = self.run_on("--part", "tests", tests="sleep 60 & sleep 60")
        self.assertLess(time.monotonic() - began, 20)
        self.assertEqual((status, found["tests"]["status"]), (1, "FAILED"))
        self.assertIn("did not end within", found["tests"]["line"])

    def test_failed_tests_are_told_with_their_end(self):
        bad = "echo 'x.cpp:3: FAILED'; echo 'test cases: 3 | 2 passed | 1 failed'; exit 1"
        status, _, found = self.run_on("--part", "tests", tests=bad)
        self.assertEqual(status, 1)
        self.assertEqual(found["tests"]["line"], "test cases: 3 | 2 passed | 1 failed")
        self.assertIn("x.cpp:3: FAILED", found["tests"]["tail"])

    def test_what_a_sanitizer_finds_fails_the_part(self):
        bad = "echo '========= Invalid __global__ write'; exit 99"
        status, _, found = self.run_on("--part", "sanitizer", sanitizer=bad)
        self.assertEqual((status, found["sanitizer"]["status"]), (1, "FAILED"))
        self.assertIn("========= Invalid __global__ write", found["sanitizer"]["tail"])

    def test_a_device_without_sanitizer_skips_it(self):
        status, _, found = self.run_on("--part", "sanitizer",
                                       sanitizer="echo Device not supported; exit 1")
        self.assertEqual((status, found["sanitizer"]["status"]), (0, "skipped"))

    def test_an_accuracy_too_low_fails(self):
        status, _, found = self.run_on("--part", "training", accuracy=0.1)
        self.assertEqual((status, found["training"]["status"]), (1, "FAILED"))
        self.assertIn("must be at least", found["training"]["line"])

    def test_programs_for_another_card_are_not_used(self):
        status, _, found = self.run_on("--part", "ops", architecture="80")
        self.assertEqual(status, 1)
        self.assertIn("the bundle is for 80, the card 90", found["build"]["line"])
        self.assertEqual(found["ops"]["line"], "there are no programs to run")

    def test_programs_that_do_not_start_are_not_used(self):
        status, _, found = self.run_on("--part", "ops", start="echo no GLIBC_9.9; exit 1\n")
        self.assertEqual(status, 1)
        self.assertIn("cairn does not start (status 1: no GLIBC_9.9)", found["build"]["line"])

    def test_the_bundles_own_libraries_are_a_second_try(self):
        need = '[ -f "$(dirname "$0")/../lib/libstdc++.so.6" ] || exit 1\n'
        status, _, found = self.run_on("--part", "ops", start=need, fallback="libstdc++.so.6")
        self.assertEqual((status, found["build"]["status"]), (0, "ok"), found)

    def test_when_no_time_is_left_the_rest_is_skipped(self):
        status, _, found = self.run_on("--minutes", "0.01")
        self.assertEqual(status, 0)
        self.assertEqual(set(self.states(found).values()), {"skipped"})
        self.assertEqual(found["build"]["line"], "no time is left")

    def test_a_mistake_in_a_part_is_a_failed_part(self):
        with mock.patch.object(parts, "sanitizer_verdict", side_effect=KeyError("x")):
            status, _, found = self.run_on("--part", "sanitizer")
        self.assertEqual((status, found["sanitizer"]["status"]), (1, "FAILED"))


if __name__ == "__main__":
    unittest.main()
