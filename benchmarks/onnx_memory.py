"""Peak memory of writing an ONNX graph, for a 7B model's widths and two numbers of blocks.

    python -m benchmarks.onnx_memory [--blocks 2,4]

Random weights in Llama-2-7B's shapes (see `benchmarks.slicing_memory`), `int8` by rows, nothing
calibrated. Each build runs twice: once to make the weights, once more with those in the cache, in a
process of its own that only exports, whose peak resident memory is the kernel's figure. Beside it
stands what importing what it needs takes. It is bounded by one tensor if it does not grow with the
number of blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.same_type import RESULTS
from benchmarks.slicing_memory import write_model

EXPORT = """
import resource, sys, time, edgepack, torch, transformers, onnx
import edgepack.pipeline
from edgepack.export import onnx as _
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
start, before = time.monotonic(), peak()
edgepack.build(sys.argv[1], "onnx", out=sys.argv[2], force=True)
print(peak(), before, time.monotonic() - start)
"""


def measured(blocks: int, folder: Path) -> tuple[int, float, float, float]:
    """Bytes of the graph's data, peak and what imports take (bytes), seconds."""
    write_model(folder / "model", blocks)
    recipe = folder / "recipe.yaml"
    compress = {"format": "int8", "embeddings": "int8"}
    recipe.write_text(
        json.dumps({"model": "model", "compress": compress, "export": {"measure": {"tokens": 0}}})
    )
    run = [sys.executable, "-c", EXPORT, str(recipe), str(folder / "out")]
    own = {**os.environ, "EDGEPACK_CACHE": str(folder / "cache")}
    for _ in range(2):
        done = subprocess.run(run, check=True, env=own, capture_output=True, text=True)
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
