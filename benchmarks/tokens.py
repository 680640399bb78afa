"""What more calibration text is worth, at the same type and bytes.

    python -m benchmarks.tokens [--types q4_0] [--tokens 106496] [--shared ../shared]

SmolLM2-135M-Instruct in a type, rank 0, measured as in `benchmarks.same_type`, stock with
an imatrix of the same tokens; calibrated on so many tokens of calibration_datav3 and groups_merged
together. A run replaces its own rows in results/ and keeps the others.
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

TEXTS = ("calibration_datav3.txt", "groups_merged.txt")


def row(name: str, tokens: int, shared: Path, folder: Path) -> dict[str, Any]:
    """Stock and ours."""
    text = folder / "text.txt"
    parts = ((shared / "data/calib" / part).read_text(encoding="utf-8") for part in TEXTS)
    text.write_text("\n".join(parts), encoding="utf-8")
    given = recipe(name, shared)
    given["calibrate"] = {"source": str(text), "tokens": tokens}
    steps = pipeline.build(parse(given), "gguf", base=Path(), out=folder / name)
    results = finish(steps).manifest["measured"]["results"]
    stock = results[f"stock {name} + imatrix"]
    return {"tokens": tokens, "type": name, "stock": stock, "edgepack": results["edgepack"]}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| type | tokens | mean KL, stock + imatrix | edgepack | ratio |"]
    lines += ["|---|---:|---:|---:|---:|"]
    for r in sorted(rows, key=lambda r: (r["type"], r["tokens"])):
        sides = [r[side] for side in ("stock", "edgepack")]
        kl = [f"{side['kl_mean']:.4f} ± {side['kl_error']:.4f}" for side in sides]
        ratio = sides[1]["kl_mean"] / sides[0]["kl_mean"]
        lines.append(f"| {r['type']} | {r['tokens']:,} | {kl[0]} | {kl[1]} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--types", default="q4_0")
    parser.add_argument("--tokens", default="106496")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    kept = RESULTS / "tokens.json"
    rows = (
        {(r["type"], r["tokens"]): r for r in json.loads(kept.read_text())} if kept.exists() else {}
    )
    for tokens in map(int, options.tokens.split(",")):
        for name in options.types.split(","):
            with tempfile.TemporaryDirectory() as folder:
                rows[name, tokens] = row(name, tokens, options.shared.resolve(), Path(folder))
            print(table([rows[name, tokens]]).splitlines()[-1], flush=True)
            kept.write_text(json.dumps([*rows.values()], indent=1) + "\n")
            (RESULTS / "tokens.md").write_text(table([*rows.values()]) + "\n")


if __name__ == "__main__":
    main()
