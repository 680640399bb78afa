"""What training between the roundings leaves of the KL, type by type: the budget's correction.

    python -m benchmarks.trained [--types q2_0,iq4_nl] [--shared ../shared]

SmolLM2-135M-Instruct with every fifth block in one type at rank 0 and all else as float16, rounded
and with `compress.compensate`; 16,384 tokens of calibration_datav3, one damping. KL to the original
through llama.cpp on the first 2,048 tokens of WikiText-2's test split and of web text (C4), and
what is left of it: the geometric mean of both texts' ratios. A run replaces its types' rows.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.same_type import MODEL, RESULTS
from edgepack import formats, pipeline
from edgepack.core.progress import finish
from edgepack.recipe.read import parse

TYPES = ("q2_0", "iq4_nl")
"""Those of fewest and of most bits that fit all matrices of a block and lose something."""
TEXTS = {"WikiText": "text/wikitext2-raw/wiki.test.raw", "web": "text/c4/c4.utf8"}
EVERY, BLOCKS = 5, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    kept = RESULTS / "trained.json"
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    for name in options.types.split(","):
        rows[name] = {
            label: measure(name, compensate, options.shared / "data")
            for label, compensate in (("rounded", None), ("trained", {}))
        }
        kept.write_text(json.dumps(rows, indent=1) + "\n")
        (RESULTS / "trained.md").write_text(table(rows) + "\n")
        print(table(rows), flush=True)


def measure(name: str, compensate: dict[str, Any] | None, data: Path) -> dict[str, float]:
    """KL on every text."""
    whole = [block for block in range(BLOCKS) if block % EVERY]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for label, text in TEXTS.items():
            recipe = {
                "model": MODEL,
                "calibrate": {
                    "source": str(data / "calib/calibration_datav3.txt"),
                    "tokens": 16_384,
                },
                "compress": {
                    "format": name,
                    "damping": [0.03],
                    "compensate": compensate,
                    "embeddings": "f16",
                    "overrides": {f"model.layers.{block}.*": {"format": "f16"} for block in whole},
                },
                "export": {
                    "measure": {"text": str(data / text), "tokens": 2048, "stock": False},
                },
            }
            out = Path(folder) / "out"
            steps = pipeline.build(parse(recipe), "gguf", base=Path(), out=out, force=True)
            found[label] = finish(steps).manifest["measured"]["results"]["edgepack"]["kl_mean"]
    return found


def left(row: dict[str, dict[str, float]]) -> float:
    """The share of the KL that is left by training."""
    ratios = [row["trained"][text] / row["rounded"][text] for text in TEXTS]
    return math.prod(ratios) ** (1 / len(ratios))


def table(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown, from the fewest bits to the most."""
    lines = ["| type | bits | " + " | ".join(f"{text}, rounded | trained" for text in TEXTS)]
    lines = [f"{lines[0]} | left |", "|---|" + "---:|" * (2 + 2 * len(TEXTS))]
    for name in sorted(rows, key=lambda name: formats.get(name).bits_per_weight):
        row = rows[name]
        cells = [f"{row[how][text]:.4f}" for text in TEXTS for how in ("rounded", "trained")]
        bits = f"{formats.get(name).bits_per_weight:.4g}"
        lines.append(f"| {name} | {bits} | {' | '.join(cells)} | {left(row):.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
