"""Makes the static workers for phones and other machines; each once, kept in the cache.

``python -m edgepack.bench.native.build [VARIANT …]`` prints where they are. The compiler is zig,
from PyPI, because it brings the C libraries of other machines; llama.cpp is that of the release of
llama-cpp-python that edgepack is tested with. Both are pinned.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgepack.core.disk import atomic, lock_of, locked, root, sha256
from edgepack.errors import EdgepackError, missing_extra

ZIG = "0.17.1"
SOURCE = "llama_cpp_python-0.3.36.tar.gz"
SOURCE_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
HERE = Path(__file__).parent
WORKER = "edgepack-worker"
LIBRARIES = ("llama", "ggml", "ggml-cpu", "ggml-base")
FLAGS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-static", "-s")
OPTIONS = (
    *("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_BUILD_NUMBER=1"),
    *("-DGGML_NATIVE=OFF", "-DGGML_OPENMP=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_SUBPROCESS=OFF"),
    # -mcpu says what there is; these would say it again, in words that zig does not know
    *(f"-DGGML_{name}=OFF" for name in ("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C")),
    *(
        f"-DLLAMA_{name}=OFF"
        for name in (
            *("BUILD_COMMON", "BUILD_TESTS", "BUILD_TOOLS", "BUILD_EXAMPLES", "BUILD_SERVER"),
            *("BUILD_APP", "BUILD_UI", "USE_PREBUILT_UI"),
        )
    ),
)
"""Of llama.cpp's CMake: only its libraries, with nothing that is downloaded or loaded later."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Variant:
    """One way to compile llama.cpp."""

    machine: str
    """As `uname -m` has it."""
    cpu: str
    """In zig's words; llama.cpp uses what this CPU has."""
    features: tuple[str, ...] = ()
    """What the CPU must have, in the words of /proc/cpuinfo."""
    define: str = ""
    """Makes `cpu.cpp` look for these features."""

    @property
    def target(self) -> str:
        """In zig's words; musl, because Android lets apps make the system calls that it makes."""
        return f"{self.machine}-linux-musl"


VARIANTS: Mapping[str, Variant] = {
    "aarch64-dotprod": Variant(
        "aarch64",
        "generic+v8_2a+dotprod+fullfp16",
        ("asimddp", "fphp", "asimdhp"),
        "NEEDS_DOTPROD",
    ),
    "aarch64": Variant("aarch64", "generic"),
    "x86_64-avx2": Variant("x86_64", "x86_64_v3", ("avx2", "fma", "f16c", "bmi2"), "NEEDS_AVX2"),
    "x86_64": Variant("x86_64", "x86_64_v2", ("sse4_2",)),
}
"""By name, those for newer CPUs first. One with i8mm would have to show on a phone that it pays."""


def choose_variant(about: Mapping[str, Any]) -> str:
    """The variant for a device, of what its `describe` says. Where the CPU is emulated its features
    are not known, so that it gets the one that needs least."""
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(about["machine"], about["machine"])
    features = set(about.get("features", ()))
    for name, variant in VARIANTS.items():
        if variant.machine == machine and features.issuperset(variant.features):
            return name
    machines = ", ".join(sorted({variant.machine for variant in VARIANTS.values()}))
    raise EdgepackError(
        f"there is no worker for {about['machine']}"
        + (" without SSE 4.2" if machine == "x86_64" else ""),
        hint=f"workers are made for Linux and Android on {machines}",
    )


def make_worker(name: str, *, jobs: int = 0, say: Say = lambda _: None) -> Path:
    """The program for a variant, compiled if it is not in the cache: minutes, the first time.

    `jobs` compilers run at once, 0: as many as there are cores. `say` hears what takes time.
    """
    variant, worker = VARIANTS[name], worker_path(name)
    if worker.is_file():
        return worker
    libraries = _libraries(variant)
    with _alone():
        tools = _Tools.find()
        if not libraries.is_dir():
            _make_libraries(variant, libraries, tools, jobs or os.cpu_count() or 1, say)
        _link(variant, libraries, worker, tools)
    return worker


def worker_path(name: str, sources: Path = HERE) -> Path:
    """Where a worker is, or will be: its folder is called by the digest of all that it is made of
    (`sources` is the folder of its own files)."""
    variant = VARIANTS[name]
    digests = [sha256(file) for file in sorted([*sources.glob("*.cpp"), *sources.glob("*.h")])]
    key = _key([_libraries(variant).name, variant.define, *FLAGS, *digests])
    return _cache() / f"{name}-{key}" / WORKER


def _cache() -> Path:
    return (root() / "workers").resolve()  # other programs run elsewhere


def _libraries(variant: Variant) -> Path:
    key = _key([SOURCE_SHA256, ZIG, variant.target, variant.cpu, *OPTIONS])
    return _cache() / f"llama-{key}"


def _key(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@contextmanager
def _alone() -> Iterator[None]:
    with locked(lock_of("workers")) as mine:
        if not mine:
            raise EdgepackError("another process is making workers", hint="wait for its end")
        yield


@dataclass(frozen=True)
class _Tools:
    zig: Path
    cmake: str
    ninja: str

    @classmethod
    def find(cls) -> _Tools:
        """In this environment, or on the path."""
        spec = importlib.util.find_spec("ziglang")
        if spec is None or spec.origin is None:
            raise missing_extra("ziglang", "devices")
        version = metadata.version("ziglang")
        if version != ZIG:
            raise EdgepackError(
                f"ziglang is {version}, workers are made with {ZIG}",
                hint="pip install 'edgepack[devices]'",
            )
        programs = []
        places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        for name in ("cmake", "ninja"):
            program = shutil.which(name, path=places)
            if program is None:
                raise missing_extra(name, "devices")
            programs.append(program)
        return cls(Path(spec.origin).parent / "zig", *programs)


def _make_libraries(variant: Variant, folder: Path, tools: _Tools, jobs: int, say: Say) -> None:
    """Compile llama.cpp into a folder that appears when it is whole. What was compiled before this
    process was killed is used."""
    source = _source(say)
    say(f"compiling llama.cpp for {variant.target}, {variant.cpu}: this takes some minutes")
    build = folder.with_name(f"{folder.name}.build")
    build.mkdir(parents=True, exist_ok=True)
    toolchain = _write_toolchain(build, variant, tools)
    options = (f"-DCMAKE_MAKE_PROGRAM={tools.ninja}", f"-DCMAKE_TOOLCHAIN_FILE={toolchain}")
    command = [tools.cmake, "-S", str(source), "-B", str(build), "-G", "Ninja"]
    _run([*command, *OPTIONS, *options], build)
    _run([tools.ninja, "-C", str(build), f"-j{jobs}", "llama", "ggml"], build)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "include").mkdir(parents=True)
    for library in LIBRARIES:
        shutil.copy(next(build.rglob(f"lib{library}.a")), partial)
    for header in (*(source / "include").glob("*.h"), *(source / "ggml/include").glob("*.h")):
        shutil.copy(header, partial / "include")
    shutil.copytree(source / "vendor/nlohmann", partial / "include/nlohmann")
    partial.rename(folder)
    shutil.rmtree(build)


def _write_toolchain(build: Path, variant: Variant, tools: _Tools) -> Path:
    """CMake wants one program for each tool, and to be told which machine it compiles for."""
    lines = ["set(CMAKE_SYSTEM_NAME Linux)", f"set(CMAKE_SYSTEM_PROCESSOR {variant.machine})"]
    for key, words in {
        "C_COMPILER": f"cc -target {variant.target} -mcpu={variant.cpu}",
        "CXX_COMPILER": f"c++ -target {variant.target} -mcpu={variant.cpu}",
        "AR": "ar",
        "RANLIB": "ranlib",
    }.items():
        program = build / f"zig-{words.split()[0]}"
        program.write_text(f'#!/bin/sh\nexec "{tools.zig}" {words} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        lines.append(f'set(CMAKE_{key} "{program}")')
    file = build / "toolchain.cmake"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def _link(variant: Variant, libraries: Path, worker: Path, tools: _Tools) -> None:
    """Compile the worker for the oldest CPU of its kind (see `cpu.cpp`), with llama.cpp's
    libraries."""
    worker.parent.mkdir(parents=True, exist_ok=True)
    with atomic(worker) as temporary:
        _run(
            [str(tools.zig), "c++", "-target", variant.target, *FLAGS]
            + ([f"-D{variant.define}"] if variant.define else [])
            + [f"-I{libraries / 'include'}", *(str(file) for file in sorted(HERE.glob("*.cpp")))]
            + [str(libraries / f"lib{library}.a") for library in LIBRARIES]
            + ["-o", str(temporary)],
            worker.parent,
        )
        temporary.chmod(0o755)


def _source(say: Say) -> Path:
    """llama.cpp's folder, unpacked; its archive is downloaded by pip, and compared."""
    folder = _cache() / f"source-{SOURCE_SHA256[:16]}"
    if folder.is_dir():
        return folder
    archive = folder.parent / SOURCE
    if not archive.is_file():
        say(f"downloading {SOURCE}")
        release = SOURCE.removesuffix(".tar.gz").replace("-", "==").replace("_", "-")
        options = ("--no-deps", "--no-binary", release.split("==")[0], "--dest", str(folder.parent))
        folder.parent.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "pip", "download", "-q", *options, release], folder.parent)
    if sha256(archive) != SOURCE_SHA256:
        archive.unlink()
        raise EdgepackError(f"{SOURCE} has other bytes than it should have", hint="try again")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        start = f"{SOURCE.removesuffix('.tar.gz')}/vendor/llama.cpp/"
        members = [member for member in tar.getmembers() if member.name.startswith(start)]
        tar.extractall(partial, members, filter="data")
    (partial / start).rename(folder)
    shutil.rmtree(partial)
    archive.unlink()
    return folder


def _run(command: list[str], folder: Path) -> None:
    """Run a program that prints into a log in a folder; its failure is one line."""
    log = folder / "log.txt"
    environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(_cache() / "zig")}
    with log.open("wb") as out:
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, check=False
        )
    if done.returncode:
        program = Path(command[0]).name
        raise EdgepackError(
            f"worker: {program} ended with {done.returncode}", hint=f"see why in {log}"
        )


def main() -> int:
    """Make the variants that are named; those for this machine if none is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--jobs", type=int, default=0, help="compilers at once (default: cores)")
    arguments = parser.parse_args()
    here = [name for name, it in VARIANTS.items() if it.machine == platform.machine()]
    unknown = set(arguments.variants) - set(VARIANTS)
    if unknown:
        parser.error(f"no variant {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    try:
        for name in arguments.variants or here:
            print(make_worker(name, jobs=arguments.jobs, say=_print_aside))
    except EdgepackError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


def _print_aside(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
