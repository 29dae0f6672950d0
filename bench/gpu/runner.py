"""The clock of `./run gpu`, its processes and its report.

Invariant: nothing that was started outlives its time or this program, and the report on the disk is
complete after every part, so that a machine that goes away takes only the running part with it.
"""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import threading
import time

OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"
TAIL = 12  # lines of a failed part's output in the report


class Clock:
    def __init__(self, seconds):
        self.start = time.monotonic()
        self.end = self.start + seconds

    def used(self):
        return time.monotonic() - self.start

    def left(self, most=1e9, keep=0):
        """Seconds until the end, less `keep` for what comes later, and at most `most`."""
        return max(0.0, min(most, self.end - time.monotonic() - keep))


@dataclasses.dataclass
class Done:
    status: int | None  # None: it was stopped at its limit, or could not start
    text: str
    seconds: float
    timed_out: bool = False

    def tail(self, lines=TAIL):
        return [line for line in self.text.splitlines() if line.strip()][-lines:]

    def why(self):
        """In a few words, for a line of the report."""
        if self.timed_out:
            return f"did not end within {self.seconds:.0f} s"
        last = self.tail(1)
        return f"status {self.status}" + (f": {last[0].strip()[:160]}" if last else "")


class Processes:
    """Runs commands in process groups of their own; their output goes to one log file too."""

    def __init__(self, log):
        self.log = pathlib.Path(log)
        self.log.write_text("")
        self.running = []
        self.lock = threading.Lock()

    def start(self, command, env=None, cwd=None, output=None):
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output or subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
        self.running.append(process)
        return process

    def stop(self, process, grace=3.0):
        """Asks the process to end, waits a little, and kills its whole group."""
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(grace)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        process.wait()
        if process in self.running:
            self.running.remove(process)

    def stop_all(self):
        for process in list(self.running):
            self.stop(process)

    def run(self, command, limit, env=None, cwd=None):
        """Ends the command after `limit` seconds at most. Threads may call it at once."""
        began = time.monotonic()
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            try:
                process = self.start(command, env, cwd, output)
            except OSError as error:
                return Done(None, str(error), 0.0)
            try:
                status = process.wait(timeout=max(limit, 0.1))
            except subprocess.TimeoutExpired:
                status = None
            finally:
                self.stop(process)
                output.seek(0)
                text = output.read()
                with self.lock, open(self.log, "a") as log:
                    log.write(f"\n$ {' '.join(str(word) for word in command)}\n{text}")
        return Done(status, text, time.monotonic() - began, status is None)


@dataclasses.dataclass
class Part:
    name: str
    status: str
    line: str
    seconds: float = 0.0
    details: dict = dataclasses.field(default_factory=dict)
    tail: list = dataclasses.field(default_factory=list)  # of a failed part's output

    def text(self):
        return f"{self.name:10} {self.status:8} {self.seconds:6.1f} s  {self.line}"


class Report:
    """report.txt and report.json in the output folder."""

    def __init__(self, folder, head):
        self.folder = pathlib.Path(folder)
        self.head = head  # name -> what is known of the machine and the run
        self.parts = []
        self.table = []  # lines of the benchmark

    def add(self, part, complete=False):
        self.parts.append(part)
        print(part.text(), flush=True)
        self.write(complete)

    def failed(self):
        return [part.name for part in self.parts if part.status == FAILED]

    def short(self):
        """What is printed last."""
        lines = [part.text() for part in self.parts]
        if self.table:
            lines += ["", *self.table]
        bad = self.failed()
        return [*lines, "", f"failed: {', '.join(bad)}" if bad else "nothing failed"]

    def write(self, complete):
        known = {"complete": complete, **self.head}
        lines = [f"{name}: {value}" for name, value in known.items()]
        lines += ["", *self.short()]
        for part in self.parts:
            if part.tail:
                lines += ["", f"--- {part.name} ---", *part.tail]
        (self.folder / "report.txt").write_text("\n".join(lines) + "\n")
        parts = [dataclasses.asdict(part) for part in self.parts]
        (self.folder / "report.json").write_text(
            json.dumps({**known, "parts": parts}, indent=2) + "\n"
        )
