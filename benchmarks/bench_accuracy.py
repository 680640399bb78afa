"""`edgepack bench` beside llama-bench and /usr/bin/time, on the same file in the same minutes.

    python -m benchmarks.bench_accuracy MODEL.gguf LLAMA_BENCH [--rounds 9]

LLAMA_BENCH is llama-bench built from the sources and with the options of the installed
llama-cpp-python (the Makefile's `LLAMA_CMAKE_ARGS`). The two programs take turns. Ratios are
medians of the rounds' own ratios, with an interval for the true median in brackets. Memory: what
the worker says of itself beside "Maximum resident set size" of /usr/bin/time around it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.same_type import RESULTS
from edgepack.bench import bench
from edgepack.bench.llama_bench import read_llama_bench
from edgepack.bench.protocol import Case, Ended, RunModel, read_events
from edgepack.bench.statistics import paired_ratio
from edgepack.core.tables import markdown
from edgepack.runtimes._llama_library import extra_buffers_are_safe

PAGE = RESULTS / "bench_accuracy.md"
PROMPT, DECODE, DEPTH = 256, 64, 256
CASES = (
    Case(kind="prompt", tokens=PROMPT),
    Case(kind="decode", tokens=DECODE),
    Case(kind="decode", tokens=DECODE, depth=DEPTH),
)


def llama_bench(program: str, model: Path, threads: int, folder: Path) -> dict[Case, float]:
    """Tokens per second of each case in llama-bench, one repetition."""
    repack = "1" if extra_buffers_are_safe() else "0"
    command = [program, "-m", model, "-t", threads, "-r", 1, "-o", "json", "--repack", repack]
    found: dict[Case, float] = {}
    for depth, options in ((0, ["-p", PROMPT, "-n", DECODE]), (DEPTH, ["-p", 0, "-n", DECODE])):
        words = [str(word) for word in [*command, *options, "-d", depth]]
        said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        (folder / "theirs.json").write_text(said, encoding="utf-8")
        for test in read_llama_bench(folder / "theirs.json"):
            assert test.case is not None
            found[test.case] = test.tokens_per_second
    return found


def ours(model: Path, threads: int) -> dict[Case, float]:
    """The same in our worker, one round."""
    found = bench(
        [model],
        threads=[threads],
        prompts=[PROMPT],
        decode=DECODE,
        depths=[0, DEPTH],
        rounds=1,
        limits=False,
    )
    return {timing.case: timing.tokens_per_second for timing in found.models[0].timings}


def peaks(model: Path, threads: int) -> tuple[int, int]:
    """Peak memory in bytes: as the worker says, and as /usr/bin/time does."""
    job = RunModel(model=str(model), threads=threads, cases=CASES).model_dump_json()
    command = ["/usr/bin/time", "-v", sys.executable, "-m", "edgepack.bench.worker", job]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    ended = read_events(said.stdout, "worker")[-1]
    assert isinstance(ended, Ended)
    assert ended.memory.peak is not None
    resident = re.search(r"Maximum resident set size \(kbytes\): (\d+)", said.stderr)
    assert resident is not None
    return ended.memory.peak, int(resident[1]) << 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("llama_bench")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    speeds: dict[str, dict[Case, list[float]]] = defaultdict(lambda: defaultdict(list))
    memory = []
    with TemporaryDirectory() as name:
        for done in range(given.rounds):
            theirs = llama_bench(given.llama_bench, given.model, given.threads, Path(name))
            for who, found in (("theirs", theirs), ("ours", ours(given.model, given.threads))):
                for case, speed in found.items():
                    speeds[who][case].append(speed)
            memory.append(peaks(given.model, given.threads))
            print(f"round {done + 1} of {given.rounds}", file=sys.stderr)
    rows = [["", "edgepack", "other", "ratio"]]
    for case in CASES:
        mine, other = speeds["ours"][case], speeds["theirs"][case]
        about = f"{case.kind} {case.tokens}{f' at {case.depth}' if case.depth else ''}, tokens/s"
        ratio = str(paired_ratio(mine, other))
        rows.append([about, f"{median(mine):.1f}", f"{median(other):.1f} (llama-bench)", ratio])
    said, resident = ([pair[i] / 1e6 for pair in memory] for i in (0, 1))
    cells = [f"{median(said):.1f}", f"{median(resident):.1f} (/usr/bin/time)"]
    rows.append(["peak memory, MB", *cells, str(paired_ratio(said, resident))])
    text = "\n".join(markdown(rows)) + "\n"
    print(text)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
