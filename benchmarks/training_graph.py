"""The training step as an ONNX graph: sizes, memory, seconds a step, and the losses.

    python -m benchmarks.training_graph [--modules FOLDER] [--shared ../shared] [--work FOLDER]

SmolLM2-135M-Instruct as `q4_0` (embeddings q8_0), rounded to nearest, with factors of rank 8 in
every weight of the blocks: the SVD of what rounding leaves. What is measured does not depend on
the values. Rows of 128 tokens are from WikiText-2 (`data/text/wikitext2-raw`), one a step, eight in
turns, on two threads. Each graph runs in a process of its own (`_training_step.py`), whose peak of
memory is the operating system's; Python and numpy without a graph have 45 MB. With --modules (a
folder where npm installed onnxruntime-web) and Chromium, the page train.html runs too, on one
thread; its memory is that of all of Chromium's processes at their peak. --work keeps the packed
model for the next run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.same_type import MODEL, RESULTS
from edgepack.checkpoint import Checkpoint, open_checkpoint
from edgepack.core import plugins
from edgepack.core.progress import finish
from edgepack.core.weights import FactoredWeight, WeightFormat

STEP = Path(__file__).with_name("_training_step.py")
RANK, RATE, THREADS = 8, 1e-3, 2
KINDS: dict[str, dict[str, Any]] = {
    "128 tokens": {"length": 128},
    "128 tokens, blocks kept": {"length": 128, "recompute": False},
    "any length, 128 tokens": {"length": None, "context": 512},
}
"""What is written → options of the graph."""
BROWSER = {"128 tokens": 128, "32 tokens": 32}


def pack(checkpoint: Checkpoint, folder: Path) -> None:
    """Write an ONNX folder of the model."""
    from edgepack.export import onnx
    from edgepack.export.profiles import GraphOptions

    q4, q8, half = (plugins.find("formats", name) for name in ("q4_0", "q8_0", "f16"))

    def load(name: str) -> FactoredWeight:
        W = checkpoint.tensor(name)
        if checkpoint.specs[name].block is None:
            return FactoredWeight(q8.quantize(W))
        Q = q4.quantize(W)
        U, S, V = torch.svd_lowrank(W - Q.dequantize(), RANK, niter=2)
        L, R = U * S.sqrt(), (V * S.sqrt()).T
        return FactoredWeight(Q, half.quantize(L.contiguous()), half.quantize(R.contiguous()))

    inner, outer = WeightFormat("q4_0", RANK, "f16", "f16"), WeightFormat("q8_0")
    matrices = [spec for spec in checkpoint.specs.values() if len(spec.shape) == 2]
    parts = {spec.name: outer if spec.block is None else inner for spec in matrices}
    folder.mkdir()
    finish(onnx.write_folder(folder, checkpoint, parts, load, GraphOptions(512)))


def texts(checkpoint: Checkpoint, shared: Path, length: int = 128, count: int = 8) -> list[Any]:
    from edgepack.finetune.graph.runner import next_tokens

    (path,) = (shared / "data/text/wikitext2-raw").glob("*test*")
    ids = checkpoint.tokenizer.encode(path.read_text(encoding="utf-8")[:60_000])
    cut = [ids[start : start + length] for start in range(0, count * length, length)]
    return [(row, next_tokens(row)) for row in cut]


def measured(folder: Path, rows: list[Any], rounds: int) -> dict[str, Any]:
    texts = folder / "rows.json"
    texts.write_text(json.dumps(rows), encoding="utf-8")
    numbers = [str(number) for number in (rounds, RATE, THREADS)]
    command = [sys.executable, "-P", str(STEP), str(folder), str(texts), *numbers]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(out)
    return found


def described(folder: Path) -> dict[str, Any]:
    import onnx

    graph = onnx.load(folder / "training.onnx", load_external_data=False).graph
    data = sum(path.stat().st_size for path in folder.glob("training.onnx_data*"))
    about = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return {
        "nodes": len(graph.node),
        "graph": (folder / "training.onnx").stat().st_size,
        "data": data,
        "trained": about["size"],
    }


def in_browser(folder: Path, rows: list[Any], steps: int, modules: Path) -> dict[str, Any]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests/others"))
    from training_page import trained  # type: ignore[import-not-found]

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("Chromium is not installed")
    found, _ = trained(browser, modules, folder, rows, steps=steps, rate=RATE, fresh=1)
    seconds = [milliseconds / 1000 for milliseconds in found["times"]]
    return {**found, "times": seconds, "load": found["load"] / 1000}


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "| graph | nodes | graph, MB | data, MB | load, s | loaded, MB | peak, MB | a step, s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, r in results.items():
        about, ran = r["about"], r["ran"]
        sizes = [f"{about[key] / 1e6:.1f}" for key in ("graph", "data")]
        spans = [f"{ran[key] / 1e6:.0f}" if key in ran else "" for key in ("idle", "peak")]
        step = median(ran["times"][1:])
        numbers = [f"{about['nodes']}", *sizes, f"{ran['load']:.1f}", *spans, f"{step:.2f}"]
        lines.append(f"| {name} | " + " | ".join(numbers) + " |")
    losses = next(iter(results.values()))["ran"]["losses"]
    lines += ["", "Losses: " + " ".join(f"{loss:.3f}" for loss in losses)]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--modules", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    from edgepack.finetune.graph.base import open_base
    from edgepack.finetune.graph.folder import write_folder
    from edgepack.finetune.graph.options import Options

    store = RESULTS / "training_graph.json"
    results = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {}
    checkpoint = open_checkpoint(MODEL)
    rows = texts(checkpoint, options.shared.resolve())
    work = nullcontext(options.work) if options.work else tempfile.TemporaryDirectory()
    with work as kept, tempfile.TemporaryDirectory() as name:
        place, packed = Path(name), Path(kept) / "packed"
        if not packed.exists():
            pack(checkpoint, packed)

        def write(kind: dict[str, Any]) -> Path:
            folder = place / f"training{len(list(place.iterdir()))}"
            folder.mkdir()
            finish(write_folder(folder, open_base(packed), Options(**kind)))
            return folder

        for kind, wanted in KINDS.items():
            folder = write(wanted)
            ran = measured(folder, rows, options.rounds)
            results[kind] = {"about": described(folder), "ran": ran}
            print("\n".join(table({kind: results[kind]})), flush=True)
        for kind, length in BROWSER.items() if options.modules else ():
            folder = write({"length": length})
            cut = [(ids[:length], labels[:length]) for ids, labels in rows]
            ran = in_browser(folder, cut, 4, options.modules.resolve())
            results[f"Chromium, {kind}"] = {"about": described(folder), "ran": ran}
            print("\n".join(table({kind: results[f"Chromium, {kind}"]})), flush=True)
    store.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "training_graph.md").write_text("\n".join(table(results)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
