"""The README's table from a comparison: ours at each size beside the best stock file not larger.

edgepack compare benchmarks/sizes.yaml --sizes 50MB,55MB,60MB,65MB,70MB,75MB,80MB --out out
python -m benchmarks.sizes out/compare.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from edgepack.planning.target import get

HEADER = (
    "| all files | mean KL | same top token | decode here "
    "| best stock file not larger | mean KL | same top token | decode |"
)


def table(points: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [HEADER, "|---:|---:|---:|---:|---|---:|---:|---:|"]
    maker = get("gguf").maker
    for own in points:
        if own["maker"] == maker:
            continue
        stock = (p for p in points if p["maker"] == maker and p["nbytes"] <= own["nbytes"])
        best = min(stock, key=lambda p: p["kl_mean"])
        label = best["label"].removeprefix("stock ").split(" + ")[0]
        label = "our choice of types" if "in the types of" in best["label"] else label
        figures = [f"**{_megabytes(own)}**", *_figures(own)]
        figures += [f"{label}, {_megabytes(best)}", *_figures(best)]
        lines.append("| " + " | ".join(figures) + " |")
    return "\n".join(lines)


def _megabytes(point: dict[str, Any]) -> str:
    return f"{point['nbytes'] / 1e6:.1f} MB"


def _figures(point: dict[str, Any]) -> list[str]:
    decode = point["speed"]["decode"]
    return [f"{point['kl_mean']:.3f}", f"{point['top1']:.1%}", f"{decode:.0f} t/s"]


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
