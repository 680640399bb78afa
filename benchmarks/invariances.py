"""Types of 256 columns on a whole real model, padded; and what a rotation does to rounding.

    python -m benchmarks.invariances [--rows rotated:q4_0,padded:q3_k,…] [--shared ../shared]

SmolLM2-135M-Instruct as it is, with Hadamard rotations of its values (`compress.rotate`; its head
is tied, so the residual stream stays), and padded from 576 to 768 (`compress.pad_width`), every
weight of the blocks in one type, rank 0, calibrated on 16,384 tokens of calibration_datav3, KL to
the original on the first 12 × 512 tokens of WikiText-2's test split. Stock packs the same changed
model, with an imatrix of the same tokens. Bits are per weight of the original: zeros cost, and are
no weights. A run replaces its own rows in results/ and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.same_type import RESULTS, recipe
from edgepack import pipeline
from edgepack.core.progress import finish
from edgepack.recipe.read import parse

CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotated": {"rotate": "hadamard"},
    "padded": {"pad_width": 256},
}
ROWS = "plain:q4_0,rotated:q4_0,padded:q4_k,padded:iq4_xs,padded:q3_k,padded:iq3_s,padded:q2_k"
ROWS += ",padded:iq2_s,padded:iq3_xxs,padded:iq2_xs,padded:iq2_xxs"


def row(change: str, name: str, shared: Path) -> dict[str, Any]:
    """Build and measure one type on one changed model."""
    options = recipe("q4_0", shared)
    options["calibrate"]["tokens"] = 16384
    options["compress"] = {"format": name, "damping": [0.03], **CHANGES[change]}
    with tempfile.TemporaryDirectory() as folder:
        steps = pipeline.build(parse(options), "gguf", base=Path(), out=Path(folder) / "out")
        manifest = finish(steps).manifest
    results = manifest["measured"]["results"]
    stock = results[f"stock {name} + imatrix"]
    bits = manifest["bits_per_weight"]["blocks"]
    return {
        "change": change,
        "type": name,
        "bits": bits,
        "stock": stock,
        "edgepack": results["edgepack"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| model | type | bits per weight | MB | mean KL, stock + imatrix | edgepack | ratio |",
        "|---|---|" + "---:|" * 5,
    ]
    for r in rows:
        a, b = r["edgepack"], r["stock"]
        lines.append(
            f"| {r['change']} | {r['type']} | {r['bits']:.2f} | {a['bytes'] / 1e6:.1f} "
            f"| {b['kl_mean']:.4f} ± {b['kl_error']:.4f} | {a['kl_mean']:.4f} ± {a['kl_error']:.4f}"
            f" | {a['kl_mean'] / b['kl_mean']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default=ROWS)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    kept = RESULTS / "invariances.json"
    rows = {}
    if kept.exists():
        rows = {f"{r['change']}:{r['type']}": r for r in json.loads(kept.read_text())}
    for key in options.rows.split(","):
        rows[key] = row(*key.split(":"), options.shared.resolve())
        ordered = [rows[k] for k in ROWS.split(",") if k in rows]
        print(table([rows[key]]).splitlines()[-1], flush=True)
        kept.write_text(json.dumps(ordered, indent=1) + "\n")
        (RESULTS / "invariances.md").write_text(table(ordered) + "\n")


if __name__ == "__main__":
    main()
