"""Inputs that a fuzzer chooses by the lines which they reach (atheris, libFuzzer): one parser.

    python -m tests.fuzz.guided NAME --case FOLDER --keep FOLDER [--seconds 60]

Begins at the parser's whole files, at what once failed (`corpus`), and at inputs that reached new
lines in earlier runs, which stay in KEEP/found. Prints a JSON object as its last line. An input
that is neither read nor refused in one line is written to KEEP, and the search goes on; one that
hangs or ends the process is what libFuzzer writes there.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.fuzz.corpus import inputs_of
from tests.fuzz.harness import GOOD, Found

LONGEST = 1 << 16  # bytes of an input
HANG = 30  # seconds
MEMORY = 4096  # MB
OWN = 0.5
"""Share of the inputs that the parser's own mutator makes; libFuzzer's makes the others."""


def search(name: str, case: Path, keep: Path, seconds: float) -> tuple[Found, int]:
    """Run one parser in a process of its own; what came of it, and the edges that it reached."""
    keep.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", __spec__.name, name, "--case", str(case)]
    command += ["--keep", str(keep), "--seconds", str(seconds)]
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    found, log = Found(), run.stderr
    try:
        told = json.loads((keep / "told.json").read_text())
        found.counts.update(told["counts"])
        found.words.update(told["words"])
        found.failures += [(0, outcome, detail) for outcome, detail in told["failures"]]
    except (OSError, ValueError):
        pass
    edges = [int(number) for number in re.findall(r"cov: (\d+)", log)]
    ended = next((what for words, what in ENDS.items() if words in log), None)
    if ended or not edges:
        (keep / "log.txt").write_text(log[-20_000:])
        found.add(0, ended or "signal", f"exit {run.returncode}, see {keep}/log.txt")
    return found, max(edges, default=0)


ENDS = {
    "ERROR: libFuzzer: timeout": "hang",
    "ERROR: libFuzzer: out-of-memory": "memory",
    "ERROR: libFuzzer": "signal",
}
"""libFuzzer's words → outcome."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name")
    parser.add_argument("--case", type=Path, required=True)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    import atheris

    with atheris.instrument_imports(include=["edgepack", "yaml"], enable_loader_override=False):
        from tests.fuzz.parsers import PARSERS  # whatever it imports later is watched too

        parser = PARSERS[options.name]
        _search(parser, options.name, options.case, options.keep, options.seconds)


def _search(parser: Any, name: str, case: Path, keep: Path, seconds: float) -> None:
    import atheris

    from tests.fuzz.harness import judged

    found, seen, folder = Found(), set[str](), Path(tempfile.mkdtemp(prefix="guided-"))
    over = time.monotonic() + seconds

    def tell() -> None:
        failures = list({(outcome, detail) for _, outcome, detail in found.failures})
        told = {"counts": found.counts, "words": found.words, "failures": failures}
        (keep / "told.json").write_text(json.dumps(told))

    def one(data: bytes) -> None:
        outcome, detail = judged(lambda: parser.parse(data, folder))
        found.add(0, outcome, detail)
        if outcome not in GOOD and detail not in seen:
            seen.add(detail)
            (keep / f"{outcome}-{sha256(data).hexdigest()[:12]}").write_bytes(data)
        if found.counts.total() % 500 == 0 or time.monotonic() > over:
            tell()

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() > OWN:
            return atheris.Mutate(data, most)
        try:
            return parser.spoil(data if chance.random() < 0.7 else chance.choice(seeds), chance)[
                :most
            ]
        except Exception:  # it wants a file that is whole
            return atheris.Mutate(data, most)

    seeds = [data for data in (*parser.seeds(case), *inputs_of(name)) if len(data) <= LONGEST]
    places = [keep / "found", keep / "seeds"]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    for data in seeds:
        (places[1] / sha256(data).hexdigest()[:16]).write_bytes(data)
    flags = [f"-max_total_time={seconds:.0f}", f"-timeout={HANG}", f"-rss_limit_mb={MEMORY}"]
    flags += [f"-max_len={LONGEST}", f"-artifact_prefix={keep}/", "-print_final_stats=0"]
    atheris.Setup(
        [sys.argv[0], *flags, *map(str, places)],
        one,
        custom_mutator=mutate,
        internal_libfuzzer=True,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
