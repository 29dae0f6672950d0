"""What a machine has for `./run gpu`, and where: card, libraries, Python with PyTorch, tools, data.

Invariant: looking changes nothing, and what is not found is None or empty, never an error.
"""

import ctypes
import dataclasses
import glob
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA_FILES = tuple(
    f"{part}-{kind}"
    for part in ("train", "t10k")
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
)
DRIVER_FOLDERS = ("/usr/local/nvidia/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64",
                  "/usr/lib/wsl/lib")
LIBRARIES = ("libcudnn.so.9", "libcublasLt.so.13", "libcublasLt.so.12", "libnccl.so.2")
FIND_TORCH = "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s else '')"
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@dataclasses.dataclass
class Card:
    name: str
    capability: str  # "9.0"
    memory: int  # bytes
    driver: str  # the newest CUDA it serves: "13.0"
    folder: str | None  # of libcuda.so.1, where the loader does not know it

    @property
    def architecture(self):
        return self.capability.replace(".", "")


def find_card():
    """(card, why there is none)."""
    cuda, folder = None, None
    for place in (None, *DRIVER_FOLDERS):
        try:
            cuda = ctypes.CDLL(f"{place}/libcuda.so.1" if place else "libcuda.so.1")
            folder = place
            break
        except OSError:
            continue
    if cuda is None:
        return None, "no NVIDIA driver (libcuda.so.1 not found)"
    count = ctypes.c_int()
    status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if status != 0 or count.value == 0:
        return None, f"the driver offers no device (status {status})"
    return describe(cuda, folder), ""


def describe(cuda, folder):
    """The first card."""
    device, driver, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    cuda.cuDriverGetVersion(ctypes.byref(driver))
    numbers = []
    for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        numbers.append(value.value)
    version = f"{driver.value // 1000}.{driver.value % 1000 // 10}"
    capability = f"{numbers[0]}.{numbers[1]}"
    return Card(name.value.decode(), capability, memory.value, version, folder)


def toolkits():
    """Folders of CUDA toolkits, the one that the environment names first."""
    named = [os.environ[name] for name in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(name)]
    nvcc = shutil.which("nvcc")
    if nvcc:
        named.append(str(pathlib.Path(nvcc).resolve().parents[1]))
    found = [*named, "/usr/local/cuda", *sorted(glob.glob("/usr/local/cuda-*"), reverse=True)]
    return [folder for folder in dict.fromkeys(found) if os.path.isdir(folder)]


def find_tool(name, python=None):
    """A program on the PATH, in a toolkit, or beside the Python (wheels bring CMake and ninja)."""
    folders = [str(pathlib.Path(python).parent)] if python else []
    for toolkit in toolkits():
        folders += [f"{toolkit}/bin", f"{toolkit}/{name}", f"{toolkit}/extras/{name}"]
    found = shutil.which(name)
    for folder in folders:
        found = found or shutil.which(name, path=folder)
    return found or next(iter(glob.glob(f"/opt/nvidia/**/{name}", recursive=True)), None)


def python_with_torch(wanted=None):
    """(Python, site folder) of the first Python that has PyTorch; looking imports nothing."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    own = cache / "cairn-bench" / "bin" / "python"
    for python in filter(None, (wanted, shutil.which("python3"), sys.executable, str(own))):
        origin = output_of([python, "-c", FIND_TORCH])
        if origin:
            return python, pathlib.Path(origin).parents[1]
    return None, None


def output_of(command):
    """What it printed, or None where it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def loader_folders():
    """Folders of the libraries that the system's loader knows."""
    known = output_of([shutil.which("ldconfig") or "/sbin/ldconfig", "-p"]) or ""
    paths = (line.split("=>")[-1].strip() for line in known.splitlines() if "=>" in line)
    return dict.fromkeys(os.path.dirname(path) for path in paths)


def find_libraries(site):
    """Library -> folder: in a toolkit, where the loader looks, or in PyTorch's wheels."""
    folders = []
    for toolkit in toolkits():
        folders += [f"{toolkit}/lib64", f"{toolkit}/targets/x86_64-linux/lib"]
    folders += loader_folders()
    if site:
        folders += sorted(glob.glob(f"{site}/nvidia/*/lib")) + [f"{site}/torch/lib"]
    found = {}
    for name in LIBRARIES:
        for folder in folders:
            if os.path.exists(f"{folder}/{name}"):
                found[name] = folder
                break
    return found


def wheel_includes(site):
    """Header -> folder, of what a toolkit may lack and PyTorch's wheels have."""
    found = {}
    for header in ("cudnn_graph.h", "nccl.h"):
        for path in sorted(glob.glob(f"{site}/nvidia/*/include/{header}")) if site else ():
            found[header] = os.path.dirname(path)
    return found


def holds_data(folder):
    return bool(folder) and all(
        any((pathlib.Path(folder) / (name + end)).exists() for end in ("", ".gz"))
        for name in DATA_FILES
    )


def find_data(given, bundle):
    """The folder with Fashion-MNIST's four files: the machine's own, else the bundle's."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    places = [given, "/usr/share/datasets/fashion-mnist", cache / "cairn/data/FashionMNIST/raw"]
    places += [bundle and bundle / "data"]
    return next((str(place) for place in places if place and holds_data(place)), None)


def sources_digest(root=ROOT):
    """A number for the sources of the programs: two trees that share it build the same."""
    files = [root / "CMakeLists.txt", root / "tests/CMakeLists.txt"]
    for folder in ("cairn", "check", "cli", "cmake", "examples", "bench", "tests/gpu",
                   "tests/parity"):
        for end in ("*.h", "*.cuh", "*.cpp", "*.cu", "*.cmake", "CMakeLists.txt"):
            files += (root / folder).rglob(end)
    digest = hashlib.sha256()
    for file in sorted(set(files)):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def revision(root=ROOT):
    """Git's name of the tree, or None outside a repository."""
    return output_of(["git", "-C", str(root), "describe", "--always", "--dirty"]) or None
