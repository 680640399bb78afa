"""KL against bytes: compressed alone, sliced and compressed, sliced, fine-tuned and compressed.

    python -m benchmarks.slicing_front [--rows 512,512:rft,432:rft] [--shared ../shared]

SmolLM2-135M-Instruct sliced by one rotation, as f16 and with every matrix in q4_0 (embeddings and
head too; f16 alone where 32 does not divide the columns), through llama.cpp; mean KL to the
unsliced model on the first 4 × 512 tokens of WikiText-2's test split. Calibrated on 24,576 tokens
of its validation split, which fine-tuning (100 steps of 1,024 tokens) has too. What compression
alone does is `benchmarks/sizes.yaml`'s, calibrated on another text, to slicing's advantage. A run
replaces its own rows in results/ and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.same_type import MODEL, RESULTS
from edgepack import pipeline
from edgepack.comparison.plots import chart
from edgepack.core.progress import finish
from edgepack.recipe.read import parse

ROWS = "512,512:rft,432:rft"
Q4_0 = {"format": "q4_0", "embeddings": "q4_0", "head": "q4_0", "damping": [0.03]}
PACKED: dict[str, dict[str, Any]] = {"f16": {}, "q4_0": {"compress": Q4_0}}
ALONE = "compressed alone"


def point(row: str, packed: str, shared: Path) -> dict[str, Any]:
    """Bytes and KL of one file."""
    width, *more = row.split(":")
    sliced: dict[str, Any] = {"method": "global", "width": int(width), "allow_growth": True}
    if more:
        sliced["recover"] = {"steps": 100}
    text = shared / "data/text/wikitext2-raw"
    given = {
        "model": MODEL,
        "slice": sliced,
        "calibrate": {"source": str(text / "wiki.valid.raw"), "tokens": 24576},
        **PACKED[packed],
        "export": {
            "measure": {"text": str(text / "wiki.test.raw"), "tokens": 2048, "stock": False}
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        steps = pipeline.build(parse(given), "gguf", base=Path(), out=Path(folder) / "out")
        found = finish(steps).manifest["measured"]["results"]["edgepack"]
    series = f"sliced to {width}" + (", fine-tuned" if more else "")
    return {"series": series, "packed": packed, **found}


def alone() -> list[dict[str, Any]]:
    """The files of `benchmarks/sizes.yaml` that are ours."""
    points = json.loads((RESULTS / "sizes.json").read_text())
    own = (p for p in points if p["maker"].startswith("edgepack"))
    keys = ("kl_mean", "kl_error", "top1")
    return [
        {"series": ALONE, "packed": "mixed", "bytes": p["nbytes"], **{k: p[k] for k in keys}}
        for p in own
    ]


def table(points: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| | types | MB | mean KL | top-1 |", "|---|---|---:|---:|---:|"]
    for p in sorted(points, key=lambda p: (p["series"], p["bytes"])):
        lines.append(
            f"| {p['series']} | {p['packed']} | {p['bytes'] / 1e6:.1f} "
            f"| {p['kl_mean']:.3f} ± {p['kl_error']:.3f} | {p['top1']:.1%} |"
        )
    return "\n".join(lines)


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """The picture: a line for each series."""
    figure, axes = chart(
        "Slicing a small model with a tied head (lower left is better)",
        "size of the file, MB",
        "mean KL to the original, nats per token",
    )
    for series in sorted({p["series"] for p in points}):
        own = sorted((p for p in points if p["series"] == series), key=lambda p: p["bytes"])
        sizes, distances = [p["bytes"] / 1e6 for p in own], [p["kl_mean"] for p in own]
        axes.plot(sizes, distances, marker="o", label=series)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default=ROWS)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    shared, kept = options.shared.resolve(), RESULTS / "slicing_front.json"
    known = json.loads(kept.read_text()) if kept.exists() else []
    points = {(p["series"], p["packed"]): p for p in known}
    points |= {(p["series"], p["bytes"]): p for p in alone()}
    for row in options.rows.split(","):
        for packed in PACKED if int(row.split(":")[0]) % 32 == 0 else ["f16"]:
            made = point(row, packed, shared)
            points[made["series"], packed] = made
            found = list(points.values())
            print(table([made]).splitlines()[-1], flush=True)
            sliced = [p for p in found if p["series"] != ALONE]
            kept.write_text(json.dumps(sliced, indent=1) + "\n")
            (RESULTS / "slicing_front.md").write_text(table(found) + "\n")
            draw(found, RESULTS / "slicing_front.png")


if __name__ == "__main__":
    main()
