"""What the objective and the clipping of token weights are worth, at the same type and bytes.

    python -m benchmarks.ablation [--shared ../shared]

SmolLM2-135M-Instruct in q4_0, rank 0, calibrated and measured as in `benchmarks.same_type`, but on
16,384 tokens; each row has its own cache, because the clip is a constant of the code and in no
cache's key.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.same_type import RESULTS, recipe
from edgepack import pipeline
from edgepack.calibration import sweep
from edgepack.core.progress import finish
from edgepack.recipe.read import parse

ROWS: dict[str, tuple[str, float]] = {
    "layer (plain H, sequential)": ("layer", sweep.MAX_TOKEN_WEIGHT),
    "guided, weights not clipped": ("guided", math.inf),
    f"guided, clipped at {sweep.MAX_TOKEN_WEIGHT:g} × mean": ("guided", sweep.MAX_TOKEN_WEIGHT),
    "model, clipped alike (default)": ("model", sweep.MAX_TOKEN_WEIGHT),
}


def measured(objective: str, most: float, shared: Path) -> dict[str, Any]:
    """The metrics of one row."""
    options = recipe("q4_0", shared)
    options["calibrate"] |= {"objective": objective, "tokens": 16384}
    sweep.MAX_TOKEN_WEIGHT = most
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EDGEPACK_CACHE"] = f"{folder}/cache"
        steps = pipeline.build(parse(options), "gguf", base=Path(), out=Path(folder) / "out")
        return dict(finish(steps).manifest["measured"]["results"])


def line(label: str, r: dict[str, Any]) -> str:
    return f"| {label} | {r['kl_mean']:.4f} ± {r['kl_error']:.4f} | {r['top1']:.1%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    lines = ["| q4_0 | mean KL | top-1 |", "|---|---:|---:|"]
    for label, (objective, most) in ROWS.items():
        results = measured(objective, most, options.shared.resolve())
        lines.append(line(label, results["edgepack"]))
        print(lines[-1], flush=True)
    lines.append(line("stock + imatrix", results["stock q4_0 + imatrix"]))
    print(lines[-1])
    (RESULTS / "ablation.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
