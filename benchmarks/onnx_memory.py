"""Peak memory of writing an ONNX graph, for a 7B model's widths and two numbers of blocks.

    python -m benchmarks.onnx_memory [--blocks 2,4]

Random weights in Llama-2-7B's shapes (see `benchmarks.slicing_memory`), each rounded to `int8` as
it is written, in a process of its own whose peak resident memory is the kernel's figure. Beside it
stands what importing takes. It is bounded by one tensor if it does not grow with the blocks.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.same_type import RESULTS
from benchmarks.slicing_memory import RESIDENT, write_model

EXPORT = """
import sys, time
from edgepack.checkpoint import open_checkpoint
from edgepack.export import onnx
from edgepack.export.profiles import GraphOptions
from edgepack.core.progress import finish
checkpoint, start = open_checkpoint(sys.argv[1]), time.monotonic()
checkpoint.tokenizer
before = resident()
formats = {s.name: "int8" for s in checkpoint.specs.values() if len(s.shape) > 1}
finish(onnx.write_plain(Path(sys.argv[2]), checkpoint, formats, GraphOptions(4096)))
print(resident(), before, time.monotonic() - start)
"""


def measured(blocks: int, folder: Path) -> tuple[int, float, float, float]:
    """Bytes of the graph's data, peak and what imports take (bytes), seconds."""
    write_model(folder / "model", blocks)
    (folder / "out").mkdir()
    run = [sys.executable, "-c", RESIDENT + EXPORT, str(folder / "model"), str(folder / "out")]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    size = sum(f.stat().st_size for f in (folder / "out/onnx").iterdir())
    peak, before, seconds = map(float, done.stdout.split()[-3:])
    return size, peak, before, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", default="2,4")
    lines = ["| blocks | graph | peak | imports alone | seconds |", "|---:|" + "---:|" * 4]
    for blocks in map(int, parser.parse_args().blocks.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            size, *peaks, seconds = measured(blocks, Path(folder))
        gigabytes = [f"{value / 1e9:.2f} GB" for value in (size, *peaks)]
        lines.append(f"| {blocks} | " + " | ".join(gigabytes) + f" | {seconds:.0f} |")
        print(lines[-1], flush=True)
    (RESULTS / "onnx_memory.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
