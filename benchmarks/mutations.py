"""Break the numerics one line at a time and see which breaks the tests notice.

    python -m benchmarks.mutations [--only WORD] [--jobs 2]

Each mutation replaces one piece of text in a copy of the package, in a temporary folder, and runs
the test files named beside it. `killed` means that a test turned red, `SURVIVED` that none did,
`GONE` that the text to replace is no longer there once (bring the mutation up to date). Exits 1
unless all are killed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.mutants import GROUPS

ROOT = Path(__file__).parents[1]
TIME = 600  # seconds for the tests of one mutation
COPIED = ("edgepack", "tests", "recipes", "pyproject.toml", "README.md")


@dataclass(frozen=True)
class Mutation:
    """One piece of text in one file of the package, what it becomes, and who should notice."""

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def mutations(only: str = "") -> Iterator[Mutation]:
    """All of `mutants.GROUPS` whose file or description contains `only`."""
    for (file, tests), changes in GROUPS.items():
        for what, (old, new) in changes.items():
            if only in f"{file}: {what}":
                yield Mutation(what, file, old, new, tuple(tests.split()))


def run(mutation: Mutation, timeout: int = TIME) -> str:
    """killed, SURVIVED or GONE, and the first test that failed."""
    source = (ROOT / "edgepack" / mutation.file).read_text(encoding="utf-8")
    if mutation.old and source.count(mutation.old) != 1:
        return "GONE"
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = Path(folder) / "copy"
        for name in COPIED:
            _copy(ROOT / name, copy / name)
        changed = source.replace(mutation.old, mutation.new) if mutation.old else source
        (copy / "edgepack" / mutation.file).write_text(changed, encoding="utf-8")
        environment = os.environ | {"EDGEPACK_CACHE": f"{folder}/cache"}
        others = environment.get("PYTHONPATH", "").split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join([str(copy), *others])
        if "kernels" in mutation.file:  # compiled loops do not notice changes of what they call
            environment["NUMBA_CACHE_DIR"] = f"{folder}/compiled"
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", *mutation.tests]
        try:
            done = subprocess.run(
                [*command, "-p", "no:cacheprovider"],
                cwd=copy,
                env=environment,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "killed by the time limit"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode == 1 and failed:
        return "killed by " + failed[0].split(" ")[1].partition("::")[2]
    return "SURVIVED" if done.returncode == 0 else f"could not run: {done.stdout[-300:]!r}"


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def table(found: Sequence[tuple[Mutation, str]]) -> list[str]:
    """Markdown."""
    rows = ["| file | mutation | result |", "|---|---|---|"]
    return rows + [f"| {m.file} | {m.what} | {result} |" for m, result in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help="a file, or part of one's words")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--timeout", type=int, default=TIME, metavar="SECONDS")
    options = parser.parse_args()
    chosen = list(mutations(options.only))
    files = sorted({file for mutation in chosen for file in mutation.tests})
    control = run(Mutation("nothing", "__init__.py", "", "", tuple(files)))
    if control != "SURVIVED":
        print(f"the tests fail without any mutation: {control}")
        return 1
    print("\n".join(table([])), flush=True)
    found = []
    with ThreadPoolExecutor(options.jobs) as pool:
        results = pool.map(partial(run, timeout=options.timeout), chosen)
        for mutation, result in zip(chosen, results, strict=True):
            found.append((mutation, result))
            print(table(found[-1:])[-1], flush=True)
    killed = sum(result.startswith("killed") for _, result in found)
    print(f"\n{killed} of {len(found)} mutations are noticed")
    return killed != len(found)


if __name__ == "__main__":
    sys.exit(main())
