"""Compilers, and llama.cpp as they have it: zig for other machines, the system's own for this one.

zig is from PyPI and brings the C libraries of other machines: what it makes is static. Here a
program can use the llama.cpp of the installed llama-cpp-python instead, which takes a minute, not
ten, and was compiled for this very machine.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgepack.core.disk import atomic, sha256
from edgepack.errors import EdgepackError, missing_extra
from edgepack.native.source import (
    ARCHIVE_SHA256,
    INCLUDES,
    JINJA,
    RELEASE,
    Say,
    cache,
    llama_cpp,
    run,
)
from edgepack.native.variants import VARIANTS, Variant

ZIG = "0.17.1"
HOST = "host"
FLAGS = ("-std=c++17", "-O2", "-Wall", "-Wextra")
STATIC = ("-static", "-s")
LIBRARIES = ("llama", "ggml", "ggml-cpu", "ggml-base")
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


class Toolchain(ABC):
    """Compiles programs that use llama.cpp, for one kind of machine."""

    name: str

    @abstractmethod
    def parts(self) -> Sequence[str]:
        """What the programs depend on beside their own source, as text for a key."""

    @abstractmethod
    def link(self, sources: Sequence[Path], program: Path, jobs: int, say: Say) -> None:
        """Compile and link a program."""


def get(name: str) -> Toolchain:
    """The toolchain of a variant, or of `HOST`."""
    return Host() if name == HOST else Zig(name, VARIANTS[name])


@dataclass(frozen=True)
class Zig(Toolchain):
    """zig and a static llama.cpp that is compiled with it."""

    name: str
    variant: Variant

    def parts(self) -> Sequence[str]:
        """See `Toolchain`."""
        v = self.variant
        return [ARCHIVE_SHA256, ZIG, v.target, v.cpu, v.define, *OPTIONS, *FLAGS, *STATIC, *JINJA]

    def link(self, sources: Sequence[Path], program: Path, jobs: int, say: Say) -> None:
        """For the oldest CPU of its kind (see `shared/cpu.cpp`), with llama.cpp's libraries."""
        libraries = self._libraries(jobs, say)
        with atomic(program) as temporary:
            run(
                [*self._compiler(), *FLAGS, *STATIC]
                + ([f"-D{self.variant.define}"] if self.variant.define else [])
                + [*_includes(llama_cpp(say)), *map(str, sources), str(self._jinja(say))]
                + [str(libraries / f"lib{library}.a") for library in LIBRARIES]
                + ["-o", str(temporary)],
                program.parent,
            )
            temporary.chmod(0o755)

    def _compiler(self) -> list[str]:
        return [str(_zig()), "c++", "-target", self.variant.target]

    def _jinja(self, say: Say) -> Path:
        return _archive_jinja(
            self.variant.target, self._compiler(), [str(_zig()), "ar"], STATIC, say
        )

    def _libraries(self, jobs: int, say: Say) -> Path:
        """llama.cpp's, compiled if they are not in the cache: minutes, the first time. What was
        compiled before this process was killed is used."""
        variant = self.variant
        parts = [ARCHIVE_SHA256, ZIG, variant.target, variant.cpu, *OPTIONS]
        folder = cache() / f"llama-{key_of(parts)}"
        if folder.is_dir():
            return folder
        source = llama_cpp(say)
        say(f"compiling llama.cpp for {variant.target}, {variant.cpu}: this takes some minutes")
        build = folder.with_name(f"{folder.name}.build")
        build.mkdir(parents=True, exist_ok=True)
        cmake, ninja = _tool("cmake"), _tool("ninja")
        toolchain = _write_toolchain(build, variant)
        options = (f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DCMAKE_TOOLCHAIN_FILE={toolchain}")
        command = [cmake, "-S", str(source), "-B", str(build), "-G", "Ninja"]
        run([*command, *OPTIONS, *options], build)
        run([ninja, "-C", str(build), f"-j{jobs}", "llama", "ggml"], build)
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for library in LIBRARIES:
            shutil.copy(next(build.rglob(f"lib{library}.a")), partial)
        partial.rename(folder)
        shutil.rmtree(build)
        return folder


@dataclass(frozen=True)
class Host(Toolchain):
    """The system's compiler and the llama.cpp of the installed llama-cpp-python."""

    name: str = HOST

    @staticmethod
    def is_usable() -> bool:
        """Whether there are a compiler and the llama.cpp that the programs are written for."""
        return _system_compiler() is not None and _installed_llama() is not None

    def parts(self) -> Sequence[str]:
        """See `Toolchain`."""
        llama = _installed_llama()
        built = sha256(llama / "lib/libllama.so") if llama else ""
        return [ARCHIVE_SHA256, str(llama), built, *FLAGS, *JINJA]

    def link(self, sources: Sequence[Path], program: Path, jobs: int, say: Say) -> None:
        """See `Toolchain`."""
        compiler, llama = _system_compiler(), _installed_llama()
        if compiler is None or llama is None:
            raise EdgepackError(
                "no C++ compiler" if compiler is None else f"llama-cpp-python is not {RELEASE}",
                hint="install g++ or clang, and edgepack[llama]",
            )
        jinja = _archive_jinja(HOST, [compiler], [shutil.which("ar") or "ar"], ("-fPIC",), say)
        libraries = llama / "lib"
        with atomic(program) as temporary:
            run(
                [compiler, *FLAGS, *_includes(llama_cpp(say)), *map(str, sources), str(jinja)]
                + [str(libraries / f"lib{library}.so") for library in LIBRARIES]
                + [f"-Wl,-rpath,{libraries}", "-pthread", "-o", str(temporary)],
                program.parent,
            )


def _includes(source: Path) -> list[str]:
    return [f"-I{source / folder}" for folder in INCLUDES]


def _archive_jinja(
    target: str, compiler: Sequence[str], ar: Sequence[str], flags: Sequence[str], say: Say
) -> Path:
    """The engine of chat templates as a library: half a minute, once."""
    archive = cache() / f"jinja-{key_of([ARCHIVE_SHA256, ZIG, target, *FLAGS, *flags])}.a"
    if archive.is_file():
        return archive
    source = llama_cpp(say)
    say(f"compiling the engine of chat templates for {target}")
    build = archive.with_suffix(".build")
    build.mkdir(parents=True, exist_ok=True)
    objects = []
    for file in sorted(file for pattern in JINJA for file in source.glob(pattern)):
        objects.append(str(build / f"{file.parent.name}-{file.stem}.o"))
        command = [*compiler, *FLAGS, *flags, *_includes(source), "-c", str(file)]
        run([*command, "-o", objects[-1]], build)
    with atomic(archive) as temporary:
        run([*ar, "rcs", str(temporary), *objects], build)
    shutil.rmtree(build)
    return archive


def _write_toolchain(build: Path, variant: Variant) -> Path:
    """CMake wants one program for each tool, and to be told which machine it compiles for."""
    lines = ["set(CMAKE_SYSTEM_NAME Linux)", f"set(CMAKE_SYSTEM_PROCESSOR {variant.machine})"]
    for key, words in {
        "C_COMPILER": f"cc -target {variant.target} -mcpu={variant.cpu}",
        "CXX_COMPILER": f"c++ -target {variant.target} -mcpu={variant.cpu}",
        "AR": "ar",
        "RANLIB": "ranlib",
    }.items():
        program = build / f"zig-{words.split()[0]}"
        program.write_text(f'#!/bin/sh\nexec "{_zig()}" {words} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        lines.append(f'set(CMAKE_{key} "{program}")')
    file = build / "toolchain.cmake"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def _zig() -> Path:
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise missing_extra("ziglang", "devices")
    version = metadata.version("ziglang")
    if version != ZIG:
        raise EdgepackError(
            f"ziglang is {version}, workers are made with {ZIG}",
            hint="pip install 'edgepack[devices]'",
        )
    return Path(spec.origin).parent / "zig"


def _tool(name: str) -> str:
    """A program in this environment, or on the path."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    program = shutil.which(name, path=places)
    if program is None:
        raise missing_extra(name, "devices")
    return program


def _system_compiler() -> str | None:
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def _installed_llama() -> Path | None:
    """The folder with the libraries of llama-cpp-python, if it is of the release that edgepack is
    tested with."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None or metadata.version("llama-cpp-python") != RELEASE:
        return None
    folder = Path(spec.origin).parent
    return folder if (folder / "lib/libllama.so").is_file() else None


def key_of(parts: Sequence[str]) -> str:
    """A name for what is made of these."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
