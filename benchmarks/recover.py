"""What distilling the original into a packed model adds, at the same bytes, through llama.cpp.

    python -m benchmarks.recover [--steps 40] [--rank 0] [--shared ../shared]

SmolLM2-135M-Instruct in q2_0 (2.25 bits per weight, and the factors'), calibrated on 16,384 tokens
of calibration_datav3, before and after `recover` on the same tokens; mean KL to the original on the
first 2 × 512 tokens of WikiText-2's test split (llama.cpp is slow at q2_0 on x86).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.same_type import RESULTS, recipe
from edgepack import pipeline
from edgepack.progress import finish
from edgepack.recipe import parse


def row(label: str, options: dict[str, Any]) -> tuple[str, float]:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        steps = pipeline.build(parse(options), "gguf", base=Path(), out=Path(folder) / "out")
        manifest = finish(steps).manifest
    r = manifest["measured"]["results"]["edgepack"]
    print(f"{label}: {(time.monotonic() - start) / 60:.1f} minutes, {manifest['recovered']}")
    line = (
        f"| {label} | {manifest['bits_per_weight']['blocks']:.2f} | {r['bytes'] / 1e6:.1f} "
        f"| {r['kl_mean']:.3f} ± {r['kl_error']:.3f} | {r['top1']:.1%} | {r['perplexity']:.1f} |"
    )
    return line, r["kl_mean"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    given = recipe("q2_0", options.shared.resolve())
    given["calibrate"]["tokens"] = 16384
    given["compress"]["rank"] = options.rank
    given["export"]["measure"] |= {"tokens": 1024, "stock": False}
    steps = {"steps": options.steps, "evaluate_every": 10}
    name = f"q2_0, rank {options.rank}"
    before, start = row(name, given)
    after, end = row(f"{name}, {options.steps} steps", given | {"recover": steps})
    lines = [
        "| | bits per weight | MB | mean KL | top-1 | perplexity |",
        "|---|---:|---:|---:|---:|---:|",
        before,
        after,
    ]
    print("\n".join(lines), f"\nmean KL {1 - end / start:.0%} lower")
    (RESULTS / f"recover_rank{options.rank}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
