"""The parts of `./run gpu`, in the order in which they run.

Invariant: a part takes at most the seconds that its budget names, needs nothing from a part that
failed but the programs, and answers with one Part, whatever happens.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import sys
import tarfile
import tempfile
import time

import places
from runner import FAILED, OK, SKIPPED, Part

PROGRAMS = ("cairn", "cairn_bench", "fashion_mnist", "cairn_gpu_tests")
TARGETS = ("cairn_cli", *PROGRAMS[1:])  # that build them
PROGRAM_FILE, DEPENDENCY_FILE = "programs.tar.xz", "deps.tar.xz"  # of a bundle
# Seconds at most; the benchmark has what is left.
BUDGETS = {"build": 300, "ops": 75, "tests": 75, "sanitizer": 60, "training": 45}
BENCH_RESERVE = 10  # of the end, for the report
OP_PROCESSES = 6
SANITIZERS = ("memcheck", "racecheck", "initcheck")
SANITIZER_ERROR = 99  # its exit status where it found something
SANITIZER_OPS = 2  # of a family, the first ones
LOWEST_ACCURACY = {1: 0.70, 10: 0.88}  # after so many epochs
TAIL_OF = 12  # lines of each sanitizer that found something
REHEARSAL_OPS = ("relu", "softmax")
REHEARSAL_STEPS = "4"


class Run:
    """What the parts share."""

    def __init__(self, options, clock, processes):
        self.options, self.clock, self.processes = options, clock, processes
        self.bundle = pathlib.Path(options.bundle).resolve() if options.bundle else None
        self.card, self.no_card = places.find_card()
        self.python, self.site = places.python_with_torch(options.python)
        self.libraries = places.find_libraries(self.site)
        self.data = places.find_data(options.data, self.bundle)
        self.programs = None  # the folder they lie in
        self.scratch = tempfile.TemporaryDirectory(prefix="cairn-gpu-")
        self.warmers = []
        self.table = []
        self.env = self.environment()

    def environment(self):
        env = dict(os.environ, CAIRN_SOURCE_DIR=str(places.ROOT), PYTHONUNBUFFERED="1")
        folders = list(dict.fromkeys(self.libraries.values()))
        if os.environ.get("CAIRN_CUDA_LIBRARY_PATH"):
            folders.insert(0, os.environ["CAIRN_CUDA_LIBRARY_PATH"])
        env["CAIRN_CUDA_LIBRARY_PATH"] = ":".join(folders)
        if self.card and self.card.folder:
            add_path(env, "LD_LIBRARY_PATH", self.card.folder)
        if self.python:  # compilers that PyTorch starts are looked for on the PATH
            add_path(env, "PATH", str(pathlib.Path(self.python).parent))
        return env

    @property
    def device(self):
        return "cpu" if self.options.rehearse else "cuda:0"

    def program(self, name):
        return self.programs / name

    def execute(self, command, limit, keep=0, env=None, cwd=None):
        return self.processes.run(command, self.clock.left(limit, keep), env or self.env, cwd)


def add_path(env, name, folder):
    env[name] = f"{env[name]}:{folder}" if env.get(name) else folder


def manifest_of(bundle):
    try:
        return json.loads((bundle / "manifest.json").read_text())
    except (OSError, ValueError):
        return {}


# --- build ---------------------------------------------------------------------------------------


def build(run):
    if not run.card and not run.options.rehearse:
        return Part("build", SKIPPED, run.no_card)
    reason = "no --bundle"
    if run.bundle:
        reason = try_bundle(run)
        if not reason:
            manifest = manifest_of(run.bundle)
            line = f"the bundle's programs, of revision {manifest.get('revision')}"
            if manifest.get("sources") != places.sources_digest():
                line += ", WHICH ARE NOT OF THESE SOURCES"
            return Part("build", OK, line)
    return compile_here(run, reason)


def try_bundle(run):
    """Why the bundle's programs cannot be used, or None after making them the run's."""
    manifest = manifest_of(run.bundle)
    if not manifest:
        return "the bundle has no manifest"
    built_for = manifest.get("architectures", [])
    if run.card and run.card.architecture not in built_for:
        return f"the bundle is for {', '.join(built_for)}, the card {run.card.architecture}"
    place = pathlib.Path(run.scratch.name)
    try:
        with tarfile.open(run.bundle / PROGRAM_FILE) as tar:
            tar.extractall(place)
    except (OSError, tarfile.TarError) as error:
        return f"the bundle's programs cannot be unpacked ({error})"
    run.programs = place / "bin"
    problem = starts(run)
    if problem and (place / "lib/fallback").is_dir():
        # Its own C++ library, where the machine's is missing or older: beside the other libraries
        # the programs find it, and PyTorch does not.
        for library in (place / "lib/fallback").iterdir():
            library.rename(place / "lib" / library.name)
        problem = starts(run)
    if problem:
        run.programs = None
    return problem


def starts(run):
    """Why the programs do not start, or None."""
    for name, words in (("cairn", ["info"]), ("fashion_mnist", ["--help"]), ("cairn_bench", []),
                        ("cairn_gpu_tests", ["--help"])):
        done = run.execute([run.program(name), *words], 20)
        if done.status != 0:
            return f"{name} does not start ({done.why()})"
    return None


def compile_here(run, reason):
    cmake, nvcc = places.find_tool("cmake", run.python), places.find_tool("nvcc")
    if not cmake or not nvcc:
        missing = "CMake" if not cmake else "nvcc"
        return Part("build", FAILED, f"{reason}; and nothing was built: {missing} was not found")
    folder = places.ROOT / "build-gpu"
    env = dict(run.env, CUDACXX=nvcc)
    done = run.execute([cmake, *configure_options(run, folder)], 60, env=env)
    if done.status == 0:
        command = [cmake, "--build", folder, "--parallel", str(os.cpu_count() or 1), "--target"]
        done = run.execute([*command, *TARGETS], BUDGETS["build"], env=env)
    if done.status != 0:
        return Part("build", FAILED, f"{reason}; building: {done.why()}", tail=done.tail())
    run.programs = folder / "bin"
    problem = starts(run)
    if problem:
        return Part("build", FAILED, problem)
    return Part("build", OK, f"built in {folder.name} ({reason})")


def configure_options(run, folder):
    options = ["-S", places.ROOT, "-B", folder, "-DCAIRN_CUDA=ON", "-DCAIRN_TESTS=ON"]
    if run.card:
        options.append(f"-DCMAKE_CUDA_ARCHITECTURES={run.card.architecture}")
    ninja = places.find_tool("ninja", run.python)
    if ninja:
        options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    if run.bundle and (run.bundle / DEPENDENCY_FILE).exists():
        with tarfile.open(run.bundle / DEPENDENCY_FILE) as tar:
            tar.extractall(folder / "deps")
        options.append(f"-DCMAKE_PREFIX_PATH={folder / 'deps/usr'}")
    for header, variable in (("cudnn_graph.h", "CAIRN_CUDNN_INCLUDE"),
                             ("nccl.h", "CAIRN_NCCL_INCLUDE")):
        inside = any(pathlib.Path(t, "include", header).exists() for t in places.toolkits())
        system = any(pathlib.Path(i, header).exists()
                     for i in ("/usr/include", "/usr/include/x86_64-linux-gnu"))
        wheels = places.wheel_includes(run.site)
        if not inside and not system and header in wheels:
            options.append(f"-D{variable}={wheels[header]}")
    return options


# --- correctness ---------------------------------------------------------------------------------


def ops(run):
    """The op table in several processes: most of its time is the host's."""
    names = list(REHEARSAL_OPS) if run.options.rehearse else [op for op, _ in table_of(run)]
    if not names:
        return Part("ops", FAILED, "`cairn check --list` named no operator")
    count = min(OP_PROCESSES, os.cpu_count() or 1, len(names))
    command = [run.program("cairn"), "check", "--device", run.device]
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        shares = [names[i::count] for i in range(count)]
        done = list(pool.map(lambda s: run.execute([*command, *s], BUDGETS["ops"]), shares))
    lines = [line for one in done for line in one.text.splitlines()]
    rows = [line for line in lines if re.search(r" (ok|FAILED)$", line)]
    bad = [" ".join(line.split()[:2]) for line in rows if line.endswith("FAILED")]
    details = {"rows": len(rows), "failed": bad}
    failed = [one for one in done if one.status != 0]
    if not failed:
        return Part("ops", OK, f"{len(rows)} of {len(rows)} rows of the op table", details=details)
    line = f"{len(bad)} of {len(rows)} rows failed" + (f": {', '.join(bad[:6])}" if bad else "")
    stopped = [one for one in failed if one.timed_out or "FAILED" not in one.text]
    if stopped:
        line += f"; {len(stopped)} of {count} processes: {stopped[0].why()}"
    tail = [line for one in failed for line in one.tail()]
    return Part("ops", FAILED, line, details=details, tail=tail)


def table_of(run):
    """(operator, its row) of the op table."""
    done = run.execute([run.program("cairn"), "check", "--list"], 20)
    rows = (line.split() for line in done.text.splitlines())
    return [(words[0], words) for words in rows if len(words) >= 3]


def tests(run):
    done = run.execute([run.program("cairn_gpu_tests"), "--durations", "yes"], BUDGETS["tests"])
    skipped = re.search(r"gpu tests: skipped, .*", done.text)
    if skipped and done.status == 0:
        return Part("tests", SKIPPED, skipped.group())
    summary = re.findall(r"(?m)^(?:All tests passed.*|test cases:.*)$", done.text)
    if done.status == 0 and summary:
        return Part("tests", OK, summary[-1])
    return Part("tests", FAILED, summary[-1] if summary else done.why(), tail=done.tail(30))


def sanitizer(run):
    tool = places.find_tool("compute-sanitizer")
    if not tool:
        return Part("sanitizer", SKIPPED, "compute-sanitizer was not found")
    chosen = sanitizer_ops(run)
    checked = [run.program("cairn"), "check", *chosen, "--device", run.device, "--dtype", "f32",
               "--no-cache"]
    options = ["--error-exitcode", str(SANITIZER_ERROR), "--print-limit", "3"]

    def examine(name):
        return run.execute([tool, "--tool", name, *options, *checked], BUDGETS["sanitizer"])

    with concurrent.futures.ThreadPoolExecutor(len(SANITIZERS)) as pool:
        done = dict(zip(SANITIZERS, pool.map(examine, SANITIZERS)))
    lines, tails, states = [], [], set()
    for name, one in done.items():
        verdict, word = sanitizer_verdict(one)
        states.add(verdict)
        lines.append(f"{name} {word}")
        if verdict == FAILED:
            tails += [line for line in one.text.splitlines() if line.startswith("=====")][:TAIL_OF]
    status = next(state for state in (FAILED, SKIPPED, OK) if state in states)
    line = f"{', '.join(lines)} ({len(chosen)} ops)"
    return Part("sanitizer", status, line, details={"ops": chosen}, tail=tails)


def sanitizer_verdict(done):
    """(status, in a few words): what it found counts even where it had no time to end."""
    errors = re.search(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", done.text)
    found = re.search(r"========= (?:Invalid|Uninitialized|Error: Race|Race reported)", done.text)
    if done.status == SANITIZER_ERROR or found:
        return FAILED, f"found errors ({errors.group() if errors else 'see the tail'})"
    if "not supported" in done.text and done.status != 0:
        return SKIPPED, "cannot use this device"
    if done.timed_out:
        rows = len(re.findall(r"(?m) ok$", done.text))
        return SKIPPED, f"clean in {rows} rows, then out of time"
    if done.status != 0:
        return FAILED, f"failed ({done.why()})"
    return OK, "clean"


def sanitizer_ops(run):
    """The first operators of each family."""
    families = {}
    for op, words in table_of(run):
        if "f32" in words[2:]:
            families.setdefault(words[1], []).append(op)
    return [op for names in families.values() for op in names[:SANITIZER_OPS]]


# --- training and speed --------------------------------------------------------------------------


def training(run):
    if not run.data:
        return Part("training", SKIPPED, "Fashion-MNIST was not found; --data names its folder")
    epochs = 1 if run.options.quick or run.options.rehearse else 10
    with tempfile.TemporaryDirectory() as folder:
        command = [run.program("fashion_mnist"), "--max-epochs", str(epochs), "--data-root",
                   run.data, "--output", folder]
        if run.options.rehearse:
            command += ["--max-steps", REHEARSAL_STEPS]
        done = run.execute(command, BUDGETS["training"])
        try:
            result = json.loads(pathlib.Path(folder, "result.json").read_text())
        except (OSError, ValueError):
            result = {}
    if done.status != 0 or "test_accuracy" not in result:
        return Part("training", FAILED, done.why(), tail=done.tail())
    accuracy = result["test_accuracy"]
    line = f"{epochs} epochs of ResNet18: accuracy {accuracy:.4f} in {done.seconds:.1f} s"
    line += f", {result['step_ms_median']:.3f} ms a step"
    if not run.options.rehearse and accuracy < LOWEST_ACCURACY[epochs]:
        return Part("training", FAILED, f"{line}; must be at least {LOWEST_ACCURACY[epochs]}")
    return Part("training", OK, line, details=result)


def bench_command(run, *more):
    command = [sys.executable, places.ROOT / "bench/bench.py", "gpu", "--device", run.device]
    command += ["--cairn", quoted(run.program("cairn_bench"))]
    command += ["--job", quoted(run.program("fashion_mnist")), "--python", run.python]
    return [*command, "--data", run.data, *more]


def quoted(path):
    return "'" + str(path).replace("'", "'\\''") + "'"


def can_compare(run):
    """Why there is no benchmark, or None."""
    if not run.data:
        return "Fashion-MNIST was not found; --data names its folder"
    return None if run.python else "no Python with PyTorch was found"


def start_warming(run):
    """PyTorch compiles for minutes: that happens beside the parts that are not timed."""
    if run.options.quick or not run.card or not run.programs or can_compare(run):
        return
    for row in ("gpu_28x28_compile", "gpu_28x28_bf16", "gpu_224x224_bf16"):
        command = bench_command(run, "--warm", "--row", row)
        run.warmers.append(run.processes.start(command, run.env))


def bench(run):
    for process in run.warmers:
        run.processes.stop(process, grace=6.0)
    reason = can_compare(run)
    if reason:
        return Part("bench", SKIPPED, reason)
    limit = run.clock.left(keep=BENCH_RESERVE)
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "bench.json"
        more = ["--json", out, "--time-limit", f"{max(limit - 15, 1):.0f}", "--compile-limit", "75"]
        if run.options.quick or run.options.rehearse:
            more.append("--quick")
        if run.options.rehearse:
            more += ["--row", "gpu_28x28_eager", "--variants", "channels_last", "--threads", "1"]
        done = run.execute(bench_command(run, *more), limit)
        try:
            found = json.loads(out.read_text())
        except (OSError, ValueError):
            return Part("bench", FAILED, done.why(), tail=done.tail())
    return judge_bench(run, done, found)


def judge_bench(run, done, found):
    rows = found["rows"]
    run.table = [bench_line(row) for row in rows]
    refused = [row["row"] for row in rows if row.get("note") and not row.get("left_out")]
    measured = sum(row["ratio"] is not None for row in rows)
    missed = [row["row"] for row in rows if row["met"] == "no"]
    line = f"{measured} rows measured"
    for what, names in (("must missed in", missed), ("refused", refused)):
        line += f"; {what} {', '.join(names)}" if names else ""
    bad = bool(refused) or done.timed_out or not rows
    tail = done.tail(40) if bad else []
    return Part("bench", FAILED if bad else OK, line, details=found, tail=tail)


def bench_line(row):
    def number(value):
        return "-" if value is None else f"{value:.4g}"

    text = f"{row['row']:20} {number(row['cairn']):>8} {number(row['peer']):>8} {row['unit']:4}"
    text += f" ratio {number(row['ratio']):>6}  must {row['must']:g} aim {row['aim']:g}"
    return f"{text}  {row['met'] or '-':4}  {(row.get('note') or row.get('peer_name', '-'))[:90]}"


# Name, function, and whether it needs a card (or a rehearsal) and the programs.
PARTS = (("build", build, False), ("ops", ops, True), ("tests", tests, True),
         ("sanitizer", sanitizer, True), ("training", training, True), ("bench", bench, True))


def run_part(run, name, function, needs_programs):
    """The Part, timed; what goes wrong inside is a failed part."""
    began = time.monotonic()
    if needs_programs and not run.card and not run.options.rehearse:
        part = Part(name, SKIPPED, run.no_card)
    elif needs_programs and not run.programs:
        part = Part(name, SKIPPED, "there are no programs to run")
    elif run.clock.left() < BENCH_RESERVE:
        part = Part(name, SKIPPED, "no time is left")
    else:
        try:
            part = function(run)
        except Exception as error:  # a mistake here must not cost the other parts
            part = Part(name, FAILED, f"{type(error).__name__}: {error}"[:200])
    part.seconds = round(time.monotonic() - began, 1)
    return part
