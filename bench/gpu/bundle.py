#!/usr/bin/env python3
"""`./run gpu-bundle`: a folder from which `./run gpu --bundle` works where little else is.

Holds the programs with the libraries that they need beside them, what a rebuild from this
repository's sources needs, and Fashion-MNIST. Invariant: manifest.json names every file
with its size and checksum, the programs have been started from the folder with an empty
environment, and the whole is below 60 MiB, else the exit status is 1.
"""

import argparse
import hashlib
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tarfile

import places
from parts import DEPENDENCY_FILE, PROGRAM_FILE, PROGRAMS, TARGETS

LIMIT = 60 * 2**20
# Of every system that could run the programs at all.
OF_THE_SYSTEM = ("linux-vdso", "ld-linux", "libc.so", "libm.so", "libdl.so", "libpthread.so",
                 "librt.so")
# Only used where the machine's own is missing or older: newer ones serve all older programs.
FALLBACK = ("libstdc++.so", "libgcc_s.so")
# Headers and libraries that a build needs; static ones but for Highway, which has none.
DEPENDENCIES = ("libhwy-dev", "libhwy1", "zlib1g-dev", "nlohmann-json3-dev", "libcli11-dev",
                "libxxhash-dev", "libsodium-dev", "catch2")
CURL_HEADERS = "libcurl4-openssl-dev"  # the library is loaded at run time, by downloads only


class BundleError(Exception):
    pass


def call(command, **more):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **more)
    if done.returncode != 0:
        tail = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise BundleError(f"{command[0]} {command[1]}: status {done.returncode} {tail}")
    return done.stdout


def prepare(folder):
    """An empty folder; only an earlier bundle is replaced."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "manifest.json").exists():
        raise BundleError(f"{folder} must be empty or a bundle, got other files")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def build(architectures):
    """The folder of a build whose programs look for libraries beside themselves."""
    folder = places.ROOT / "build-bundle"
    options = ["-DBUILD_SHARED_LIBS=ON", "-DCAIRN_CUDA=ON", "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
               "-DCMAKE_INSTALL_RPATH=$ORIGIN;$ORIGIN/../lib",
               f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder / 'lib'}",
               "-DCMAKE_CUDA_FLAGS=--compress-mode=size",
               f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(architectures)}"]
    for command in (["cmake", "-G", "Ninja", "-S", places.ROOT, "-B", folder, *options],
                    ["cmake", "--build", folder, "--target", *TARGETS]):
        words = [str(word) for word in command]
        if subprocess.run(words, stdout=sys.stderr).returncode != 0:
            raise BundleError("the programs must build, got the errors above")
    return folder


def copy_stripped(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    if shutil.which("strip"):
        call(["strip", "--strip-unneeded", "-o", target, source])
    else:
        shutil.copy(source, target)
    target.chmod(0o755)


def needed_libraries(program):
    """Name -> path, of what the loader finds for it here."""
    found = {}
    for line in call(["ldd", program]).splitlines():
        words = line.split()
        if "=>" in words and len(words) > 2:
            found[words[0]] = words[2]
    missing = [name for name, path in found.items() if path == "not"]
    if missing:
        raise BundleError(f"{program.name}: libraries must be found, got none of {missing}")
    return found


def copy_programs(built, folder):
    libraries = {}
    for name in PROGRAMS:
        copy_stripped(built / "bin" / name, folder / "bin" / name)
        libraries.update(needed_libraries(built / "bin" / name))
    for name, path in libraries.items():
        if not name.startswith(OF_THE_SYSTEM):
            place = "lib/fallback" if name.startswith(FALLBACK) else "lib"
            copy_stripped(pathlib.Path(path).resolve(), folder / place / name)


def pack_programs(folder):
    with tarfile.open(folder / PROGRAM_FILE, "w:xz") as tar:
        for name in ("bin", "lib"):
            tar.add(folder / name, name)
            shutil.rmtree(folder / name)


def pack_dependencies(folder):
    """Headers, libraries and CMake files of the distribution's packages, or why there are none."""
    if not shutil.which("dpkg"):
        return "no dpkg here: nothing for a rebuild is in the bundle"
    with tarfile.open(folder / DEPENDENCY_FILE, "w:xz", dereference=True) as tar:
        for package in (*DEPENDENCIES, CURL_HEADERS):
            for path in map(pathlib.Path, call(["dpkg", "-L", package]).splitlines()):
                header = "include" in path.parts
                library = ".so." in path.name or path.suffix in (".a", ".cmake")
                library = library and package != CURL_HEADERS
                if "doc" not in path.parts and path.is_file() and (header or library):
                    tar.add(path, path.relative_to("/"))
    return None


def copy_data(folder, given):
    found = places.find_data(given, None)
    if not found:
        raise BundleError("Fashion-MNIST must be here, got none; --data names its folder")
    (folder / "data").mkdir()
    for name in places.DATA_FILES:
        packed = pathlib.Path(found) / f"{name}.gz"
        source = packed if packed.exists() else pathlib.Path(found) / name
        shutil.copyfile(source, folder / "data" / source.name)


def try_programs(folder):
    """Starts what can tell its state, with an empty environment."""
    text = call([folder / "bin/cairn", "info"], env={})
    for name in ("fashion_mnist", "cairn_gpu_tests"):
        call([folder / "bin" / name, "--help"], env={})
    return text


def write_manifest(folder, architectures):
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            name = str(path.relative_to(folder))
            files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    total = sum(file["bytes"] for file in files.values())
    manifest = {
        "revision": places.revision() or "unknown",
        "sources": places.sources_digest(),
        "architectures": architectures,
        "glibc": platform.libc_ver()[1],
        "machine": platform.machine(),
        "compiler": call(["c++", "--version"]).splitlines()[0],
        "nvcc": call([places.find_tool("nvcc"), "--version"]).splitlines()[-2].strip(),
        "bytes": total,
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return total + (folder / "manifest.json").stat().st_size


def sizes(folder):
    for part in sorted(folder.iterdir()):
        files = part.rglob("*") if part.is_dir() else [part]
        size = sum(path.stat().st_size for path in files if path.is_file())
        yield f"  {part.name:14} {size / 2**20:6.1f} MiB"


def main(arguments):
    parser = argparse.ArgumentParser(prog="gpu-bundle", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=str(places.ROOT / "build/gpu-bundle"),
                        help="default: build/gpu-bundle")
    parser.add_argument("--architecture", action="append", metavar="90",
                        help="of the cards it is for; repeatable; default: 90 (H100, H200)")
    parser.add_argument("--data", metavar="DIR", help="a folder with Fashion-MNIST's files")
    options = parser.parse_args(arguments)
    folder = pathlib.Path(options.folder).resolve()
    architectures = options.architecture or ["90"]
    try:
        built = build(architectures)
        prepare(folder)
        copy_programs(built, folder)
        try_programs(folder)
        pack_programs(folder)
        problem = pack_dependencies(folder)
        copy_data(folder, options.data)
        total = write_manifest(folder, architectures)
    except (BundleError, OSError) as error:
        print(f"gpu-bundle: {error}", file=sys.stderr)
        return 1
    print(*sizes(folder), sep="\n")
    if problem:
        print(f"gpu-bundle: {problem}")
    print(f"{os.path.relpath(folder)}: {total / 2**20:.1f} MiB")
    if total > LIMIT:
        print(f"gpu-bundle: size must be at most {LIMIT / 2**20:.0f} MiB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
