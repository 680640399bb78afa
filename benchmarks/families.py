"""Families judged by llama.cpp's own converter, on a tiny random model of every variant.

    python -m benchmarks.families --sdist llama_cpp_python-0.3.36 [--family NAME …] [--judge-only]

The sdist is `pip download --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36`,
unpacked; the converter also wants `pip install sentencepiece`. For every variant of
`tests.support.families` the converter writes a float32 GGUF. Its logits, in llama.cpp with a
float32 cache, are held against transformers: that judges the tiny model and the converter. Then
edgepack writes the same model, and the files are compared tensor for tensor (name, shape, bytes)
and key for key, but for the differences listed in `_gguf_differences`. Distances are the largest
difference of a logit over the standard deviation of all. `--judge-only` needs no edgepack.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from benchmarks._gguf_differences import differences
from tests.support.families import VARIANTS, Variant, logits, save, tokens
from tests.support.families.variant import NO_WINDOW

EXACT, GELU = 1e-4, 2e-2
"""Largest distances; ggml reads GELU from a table of float16."""
OURS, THEIRS = "ours.gguf", "converter.gguf"
FLAT = 0.3
"""Deviation of logits below which any two models agree."""


@dataclass
class Case:
    """A variant, its files in `folder`, and what was found out."""

    variant: Variant
    folder: Path
    wanted: np.ndarray
    judge: str = ""
    decoder: str = ""
    ours: str = ""
    differences: str = ""
    right: bool = True

    @property
    def tolerance(self) -> float:
        """The largest distance in llama.cpp."""
        return GELU if self.variant.gelu else EXACT

    @property
    def checkpoint(self) -> Path:
        """transformers' files; llama.cpp looks for families' names in the folder's."""
        return self.folder / "tiny"

    def distance(self, found: np.ndarray) -> float:
        """From transformers' logits: the largest difference over their deviation."""
        off = np.abs(found[:, : self.wanted.shape[1]] - self.wanted).max() / self.wanted.std()
        return float(off) if np.isfinite(off) else float("inf")


def make(variant: Variant, place: Path) -> Case:
    folder = place / variant.key.replace("/", "+")
    case = Case(variant, folder, np.empty(0))
    case.wanted = logits(save(variant, case.checkpoint), tokens(variant))
    assert case.wanted.std() > FLAT, f"{variant.key}: flat logits agree with anything"
    return case


def run_jobs(llama_cpp: Path, jobs: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """(key, error) of every job; a job that ends its process is named as one that died."""
    waiting = list(jobs)
    while waiting:
        command = [sys.executable, "-m", "benchmarks._converter", str(llama_cpp)]
        text = "".join(json.dumps(job) + "\n" for job in waiting)
        with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as given:
            given.write(text)
            given.seek(0)
            worker = subprocess.Popen(command, stdin=given, stdout=subprocess.PIPE, stderr=said)
            assert worker.stdout is not None
            for line in worker.stdout:
                result = json.loads(line)
                yield result["key"], result["error"]
                waiting.pop(0)
            if worker.wait() == 0:
                return
            said.seek(0)
            last = said.read().strip().splitlines()[-1:]
        yield waiting.pop(0)["key"], f"died: {''.join(last)}"


def judge(cases: dict[str, Case], llama_cpp: Path) -> None:
    """The converter's files against transformers: near, unless it is said that they are not."""
    jobs = [job(case, THEIRS, case.checkpoint) for case in cases.values()]
    for key, error in run_jobs(llama_cpp, jobs):
        case = cases[key]
        case.judge, near = read(case, THEIRS, error)
        case.right &= near != bool(case.variant.refused or case.variant.converter)


def read(case: Case, name: str, error: str) -> tuple[str, bool]:
    """The distance of a file's logits, or the error; and whether it is small enough."""
    if error:
        return error[:100], False
    found = case.distance(np.load((case.folder / name).with_suffix(".npy")))
    return f"{found:.0e}", found <= case.tolerance


def edgepack(cases: dict[str, Case], llama_cpp: Path) -> None:
    """Our forward pass and our files, of the families that there are."""
    from benchmarks import _family_files

    written = []
    for case in cases.values():
        if not _family_files.known(case.variant):
            case.decoder = "not yet"
            continue
        try:
            found = case.distance(_family_files.our_logits(case.checkpoint, tokens(case.variant)))
            case.decoder = f"{found:.0e}"
            case.right &= found <= EXACT
            _family_files.write(case.folder / OURS, case.checkpoint)
            written.append(case)
        except _family_files.EdgepackError as error:
            case.ours = str(error)[:100]
            case.right &= bool(case.variant.refused)
    for key, error in run_jobs(llama_cpp, [job(case, OURS) for case in written]):
        case = cases[key]
        case.ours, near = read(case, OURS, error)
        case.right &= near or case.variant.refused == NO_WINDOW  # others must not be written
        compare(case)


def compare(case: Case) -> None:
    """Our file and the converter's, where that is right."""
    theirs = case.folder / THEIRS
    if case.variant.refused or case.variant.converter or not theirs.exists():
        return
    found = differences(case.folder / OURS, theirs)
    case.differences = "; ".join(found) or "none"
    case.right &= not found


def job(case: Case, name: str, checkpoint: Path | None = None) -> dict[str, Any]:
    flags = ["--no-mtp"] if case.variant.family.startswith("qwen3_5") else []
    found = {"key": case.variant.key, "gguf": str(case.folder / name)}
    found |= {"tokens": tokens(case.variant), "flags": flags}
    return found | ({"folder": str(checkpoint)} if checkpoint else {})


def line(case: Case) -> str:
    variant = case.variant
    said = f"refused: {variant.refused}" if variant.refused else ""
    said = f"converter: {variant.converter}" if variant.converter else said
    verdict = "ok" if case.right else "WRONG"
    cells = [verdict, variant.key, case.judge, case.decoder, case.ours, case.differences, said]
    return "| " + " | ".join(cells) + " |"


HEADER = """| | variant | converter's file | our decoder | our file | differences | what is said |
|---|---|---:|---:|---:|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sdist", type=Path, required=True)
    parser.add_argument("--family", action="append", help="may be given more than once")
    parser.add_argument("--judge-only", action="store_true")
    parser.add_argument("--keep", type=Path, help="keep the files in this folder")
    options = parser.parse_args()
    llama_cpp = options.sdist.resolve() / "vendor" / "llama.cpp"
    logging.disable_progress_bar()
    chosen = [v for v in VARIANTS.values() if not options.family or v.family in options.family]
    with tempfile.TemporaryDirectory() as scratch:
        place = (options.keep or Path(scratch)).resolve()
        cases = {variant.key: make(variant, place) for variant in chosen}
        judge(cases, llama_cpp)
        if not options.judge_only:
            edgepack(cases, llama_cpp)
    print("\n".join([HEADER, *map(line, cases.values())]))
    wrong = [case.variant.key for case in cases.values() if not case.right]
    print(f"\n{len(cases) - len(wrong)} of {len(cases)} as expected")
    print("\n".join(f"not as expected: {key}" for key in wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
