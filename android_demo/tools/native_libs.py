"""Puts edgepack's programs where Android wants them: `FOLDER/ABI/libedgepack-PROGRAM….so`.

    python android_demo/tools/native_libs.py FOLDER [VARIANT …]

They are programs, not libraries: but Android unpacks nothing that has another name, and apps may
start only what Android has unpacked. `Cpu.java` knows the names.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from edgepack.errors import EdgepackError
from edgepack.native.build import PROGRAMS, make_program

NAMES: Mapping[str, tuple[str, str]] = {
    "aarch64-dotprod": ("arm64-v8a", "-dotprod"),
    "aarch64": ("arm64-v8a", ""),
    "x86_64-avx2": ("x86_64", "-avx2"),
    "x86_64": ("x86_64", ""),
}
"""Variant → Android's name of the machine, and what is added to a program's name."""
PHONES = ("aarch64-dotprod", "aarch64")
LEFT_OUT = {("bench", "aarch64")}
"""Old phones chat and learn, but are not timed: all programs for them would make the app larger
than 12 MB."""


def put(folder: Path, variants: Iterable[str], jobs: int, say: Callable[[str], None]) -> list[Path]:
    """Make the programs, if the cache has none, and copy them."""
    found = []
    for variant in variants:
        abi, more = NAMES[variant]
        for program in PROGRAMS:
            if (program, variant) in LEFT_OUT:
                continue
            path = folder / abi / f"libedgepack-{program}{more}.so"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(make_program(program, variant, jobs=jobs, say=say), path)
            found.append(path)
    return found


def main() -> int:
    """For Gradle."""
    if len(sys.argv) < 2 or not set(sys.argv[2:]) <= set(NAMES):
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    try:
        put(folder, sys.argv[2:] or PHONES, 0, lambda text: print(text, file=sys.stderr))
    except EdgepackError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
