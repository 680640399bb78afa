"""Makes programs for phones, other machines and this one; each once, kept in the cache.

``python -m edgepack.native.build [PROGRAM] [VARIANT …]`` prints where they are.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path
from typing import Literal, get_args

from edgepack.core.disk import sha256
from edgepack.errors import EdgepackError
from edgepack.native import toolchains
from edgepack.native.source import Say, alone, cache
from edgepack.native.toolchains import HOST, key_of
from edgepack.native.variants import VARIANTS

Program = Literal["bench", "chat", "tune"]
PROGRAMS: tuple[Program, ...] = get_args(Program)
HERE = Path(__file__).parent
SHARED = "shared"


def make_program(
    program: Program, variant: str, *, jobs: int = 0, say: Say = lambda _: None
) -> Path:
    """The program for a variant (see `variants.py`, or `HOST`), compiled if it is not in the cache:
    minutes, the first time.

    `jobs` compilers run at once, 0: as many as there are cores. `say` hears what takes time.
    """
    path = program_path(program, variant)
    if path.is_file():
        return path
    with alone("programs", say):
        if not path.is_file():  # another process may have made it meanwhile
            path.parent.mkdir(parents=True, exist_ok=True)
            sources = [file for file in _sources(program, HERE) if file.suffix == ".cpp"]
            toolchains.get(variant).link(sources, path, jobs or os.cpu_count() or 1, say)
    return path


def program_path(program: Program, variant: str, sources: Path = HERE) -> Path:
    """Where a program is, or will be: its folder is called by the digest of all that it is made of
    (`sources` is the folder of edgepack's own files)."""
    parts = toolchains.get(variant).parts()
    key = key_of([*parts, *(sha256(file) for file in _sources(program, sources))])
    return cache() / f"{variant}-{key}" / f"edgepack-{program}"


def _sources(program: Program, folder: Path) -> list[Path]:
    return sorted(
        file
        for name in (SHARED, program)
        for pattern in ("*.cpp", "*.h")
        for file in (folder / name).glob(pattern)
    )


def main() -> int:
    """Make programs; without names all of them, in the variants for this machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [*PROGRAMS, *VARIANTS, HOST]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--jobs", type=int, default=0, help="compilers at once (default: cores)")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        parser.error(f"no {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    programs = [name for name in PROGRAMS if name in arguments.names] or PROGRAMS
    here = [name for name, it in VARIANTS.items() if it.machine == platform.machine()]
    variants = [name for name in arguments.names if name not in PROGRAMS] or here
    try:
        for variant in variants:
            for program in programs:
                print(make_program(program, variant, jobs=arguments.jobs, say=_print_aside))
    except EdgepackError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


def _print_aside(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
