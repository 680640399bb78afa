"""Break the numerics one line at a time and see which breaks the tests notice.

    python -m benchmarks.mutations [--only WORD] [--seconds N] [--no-control]

Each mutation replaces one piece of text in a copy of the package, in a temporary folder, and runs
the test files named beside it. `killed` means that a test turned red, `SURVIVED` that none did,
`GONE` that the text to replace is no longer there once (bring the mutation up to date). Exits 1
unless all are killed. Tests run in forks of a process that has the libraries loaded, but not
edgepack.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mutants import GROUPS

ROOT = Path(__file__).parents[1]
SECONDS = 600  # for the tests of one mutation
COPIED = ("edgepack", "tests", "pyproject.toml")
LIBRARIES = ("torch", "transformers", "numba", "gguf", "pytest", "typer.testing")
NOTICED, SILENT = 1, 0
"""Exit codes of pytest: a test failed, none did."""


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


def run(mutation: Mutation, seconds: int = SECONDS) -> str:
    """killed, SURVIVED or GONE, and the first test that failed."""
    source = (ROOT / "edgepack" / mutation.file).read_text(encoding="utf-8")
    if mutation.old and source.count(mutation.old) != 1:
        return "GONE"
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy, log = Path(folder) / "copy", Path(folder) / "log"
        for name in COPIED:
            _copy(ROOT / name, copy / name)
        if mutation.old:
            changed = source.replace(mutation.old, mutation.new)
            (copy / "edgepack" / mutation.file).write_text(changed, encoding="utf-8")
        fork = multiprocessing.get_context("fork")
        child = fork.Process(target=_test, args=(copy, log, mutation))
        child.start()
        child.join(seconds)
        if child.is_alive():
            child.kill()
            child.join()
            return "killed by the time limit"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    if child.exitcode == NOTICED and failed:
        return "killed by " + failed[0].split(" ")[1].partition("::")[2]
    if child.exitcode == SILENT:
        return "SURVIVED"
    return f"could not run (exit {child.exitcode}): {' / '.join(lines[-2:])}"


def _test(copy: Path, log: Path, mutation: Mutation) -> None:
    """In the fork: pytest, in the copy and on the copy."""
    import pytest

    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(copy)
    here = {str(ROOT), ""}
    sys.path[:] = [str(copy), *(place for place in sys.path if place not in here)]
    os.environ["PYTHONPATH"] = str(copy)  # for what tests start
    os.environ["EDGEPACK_CACHE"] = str(copy.parent / "cache")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they want to be imported by pytest
    if "kernels" in mutation.file:  # compiled loops do not notice changes of what they call
        os.environ["NUMBA_CACHE_DIR"] = str(copy.parent / "compiled")
        importlib.import_module("numba").config.reload_config()
    options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-rfE"]
    code = pytest.main([*options, *mutation.tests])
    sys.stdout.flush()
    os._exit(int(code))


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
    parser.add_argument("--seconds", type=int, default=SECONDS, metavar="N")
    parser.add_argument("--no-control", action="store_true", help="trust that the tests pass")
    options = parser.parse_args()
    for library in LIBRARIES:
        importlib.import_module(library)
    for name in ("LlamaForCausalLM", "PreTrainedTokenizerFast"):  # loaded when they are asked for
        getattr(importlib.import_module("transformers"), name)
    chosen = list(mutations(options.only))
    files = sorted({file for mutation in chosen for file in mutation.tests})
    control = Mutation("nothing", "__init__.py", "", "", tuple(files))
    if not options.no_control and (result := run(control)) != "SURVIVED":
        print(f"the tests fail without any mutation: {result}")
        return 1
    print("\n".join(table([])), flush=True)
    found = []
    for mutation in chosen:
        found.append((mutation, run(mutation, options.seconds)))
        print(table(found[-1:])[-1], flush=True)
    killed = sum(result.startswith("killed") for _, result in found)
    print(f"\n{killed} of {len(found)} mutations are noticed")
    return int(killed != len(found))


if __name__ == "__main__":
    sys.exit(main())
