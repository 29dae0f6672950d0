"""The processes that are measured, alone or as the ranks of a team, and how to get one that speaks
for LibTorch.

A side reads one JSON object per line on stdin and answers each with one on stdout; an answer with
"error" is a failure:

    {"cmd": "info", "threads": n}     -> {"name": …, and what is worth printing}
    {"cmd": "setup", "job": name, "threads": n, "variant": …, …} -> {}
    {"cmd": "check"}                  -> {"outputs": lists of numbers that both sides must share}
    {"cmd": "run", "n": k}            -> {"values": [k measurements]}
    {"cmd": "rss"}                    -> {"bytes": peak resident size of the process}
    {"cmd": "memory", "device": name, "reset": bool}
                                      -> {"reserved": bytes, "allocated": bytes}, the most that the
                                         allocator held, and tensors used, since the last reset
    {"cmd": "peak", "what": "fma" | "memory"}  -> {"gflops" | "gbytes": [numbers]}   (Cairn only)
    {"cmd": "layers", "what": "conv" | "gemm", …}  -> kernel by kernel                (Cairn only)
    {"cmd": "quit"}                   ends it

Invariant: leaving the context of a Side or a Team ends its processes and everything that they
started.
"""

import hashlib
import json
import os
import pathlib
import select
import signal
import subprocess
import tempfile
import time


class SideError(Exception):
    """One side could not do what it was asked; the text says which and why."""


class LeftOut(SideError):
    """Not tried, for want of time or because the command line said so."""


def cache(name):
    """A folder of the benchmark's own outside the repository."""
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    folder = base / "cairn-bench" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SideError(f"{folder}: must be a folder to write to, got: {error.strerror}") from error
    return folder


class Side:
    """A process in a group of its own; `extra` goes into its environment."""

    def __init__(self, name, command, threads, extra=None):
        self.name = name
        env = dict(os.environ, **(extra or {}))
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            env[variable] = str(threads)
        self.log = tempfile.TemporaryFile()
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

    def quit(self):
        """Asks it to end, once."""
        if not self.process.stdin.closed:
            self.process.stdin.write(b'{"cmd": "quit"}\n')
            self.process.stdin.close()

    def __exit__(self, *_):
        try:
            self.quit()
            self.process.wait(timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            pass  # it is killed all the same
        finally:
            self._kill()
            self.process.stdout.close()
            self.log.close()

    def _kill(self):
        """Ends the process and what it started, such as compilers and workers."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def _fail(self, what):
        self.log.seek(0)
        tail = self.log.read().decode(errors="replace").strip().splitlines()[-3:]
        hint = f" ({' | '.join(tail)})" if tail else ""
        raise SideError(f"{self.name}: {what}{hint}")

    def ask(self, command, limit=600.0, **arguments):
        """The answer to one command; SideError when it fails or takes more than `limit` seconds."""
        self.tell(command, **arguments)
        return self.answer(command, limit)

    def tell(self, command, **arguments):
        try:
            self.process.stdin.write(json.dumps({"cmd": command, **arguments}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            self._fail(f"{command} must be answered, got a closed pipe")

    def answer(self, command, limit):
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


class Place:
    """Where a rank runs: what goes before its command, and into its environment."""

    def __init__(self, name="", prefix=(), environment=None):
        self.name, self.prefix, self.environment = name, list(prefix), environment or {}


class Team:
    """A Side for each rank, asked together; `start` makes the one of a place, and `merge` one
    measurement of those of all ranks."""

    def __init__(self, start, places, merge):
        self.sides, self.merge = [], merge
        try:
            for place in places:
                self.sides.append(start(place))
        except SideError:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for side in self.sides:  # all before any is waited for: ranks end together
            try:
                side.quit()
            except OSError:
                pass  # it has ended
        for side in self.sides:
            side.__exit__()

    def ask(self, command, limit=600.0, **arguments):
        """Outputs are those of all ranks, side by side."""
        for side in self.sides:
            side.tell(command, **arguments)
        replies = [side.answer(command, limit) for side in self.sides]
        merged = dict(replies[0])
        if "values" in merged:
            merged["values"] = [self.merge(v) for v in zip(*(r["values"] for r in replies))]
        if "outputs" in merged:
            merged["outputs"] = [sum(o, []) for o in zip(*(r["outputs"] for r in replies))]
        return merged


def build_libtorch(info):
    """The program of bench/libtorch, compiled against the PyTorch that `info` describes; kept
    outside the repository, by the content of the source and the version."""
    here = pathlib.Path(__file__).resolve().parent
    source = here / "libtorch" / "op_job.cpp"
    torch = pathlib.Path(info["folder"])
    key = source.read_bytes() + (here / "serve.h").read_bytes() + info["name"].encode() + str(torch).encode()
    program = cache("libtorch") / f"op_job-{hashlib.sha256(key).hexdigest()[:16]}"
    if program.exists():
        return program
    draft = program.with_suffix(f".{os.getpid()}")
    include = torch / "include"
    command = ["g++", "-std=c++20", "-O2", f"-I{include}", f"-I{include}/torch/csrc/api/include"]
    command += [str(source), "-o", str(draft), f"-L{torch}/lib", "-ltorch_cpu", "-lc10"]
    command += ["-Wl,--allow-shlib-undefined", f"-Wl,-rpath,{torch}/lib"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SideError(f"LibTorch: g++ must compile {source.name}, got: {error}") from error
    if done.returncode != 0:
        first = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
        raise SideError(f"LibTorch: {source.name} must compile, got: {first}")
    draft.rename(program)
    return program
