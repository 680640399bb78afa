"""Adapters merged into a packed model, in three ways, and what empty factors cost in ONNX.

    python -m benchmarks.merging [--shared ../shared]

SmolLM2-135M-Instruct in q4_0, rank 16 in q8_0, calibrated (guided) on 8,192 tokens of
calibration_datav3. The adapter is random: rank 8 on q, v, o and down_proj, ΔW of 8 % of each
weight's norm. KL is that to the original with ΔW as f16, on the first 6 × 512 tokens of
WikiText-2's test split through llama.cpp. Speeds are medians of 8 turns of 48 tokens in ONNX
Runtime on one core, without factors, with and without ``adapters: true``.

The model's own source is a Q4_1 file, which flatters all rows alike.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch

import edgepack
from benchmarks.same_type import MODEL, RESULTS
from edgepack import formats
from edgepack.adapter_merge import merge
from edgepack.adapter_merge.stage import Merged
from edgepack.adapters import files
from edgepack.adapters.adapter import Adapter, Lora
from edgepack.adapters.base import PackedBase
from edgepack.checkpoint import open_checkpoint
from edgepack.core.progress import finish
from edgepack.core.weights import FactoredWeight, WeightFormat
from edgepack.export import onnx
from edgepack.export.gguf import write_plain
from edgepack.export.profiles import GraphOptions
from edgepack.metrics.divergence import divergence
from edgepack.metrics.text import Text
from edgepack.runtimes.base import Sampling
from edgepack.runtimes.models import Model
from edgepack.runtimes.onnx_runtime import OnnxRuntime

CHANGED = ("q_proj", "v_proj", "o_proj", "down_proj")
RANK, SIZE = 8, 0.08
CONTEXT, TOKENS = 512, 6 * 512
TURNS, LENGTH = 8, 48


def packed(shared: Path, folder: Path) -> PackedBase:
    recipe = {
        "model": MODEL,
        "calibrate": {
            "source": str(shared / "data/calib/calibration_datav3.txt"),
            "objective": "guided",
            "tokens": 8192,
        },
        "compress": {"format": "q4_0", "rank": 16, "factors": "q8_0", "damping": [0.1]},
        "export": {"measure": {"tokens": 0}},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    edgepack.build(folder / "recipe.yaml", "gguf", out=folder / "packed")
    return PackedBase.open(folder / "packed")


def random_adapter(base: PackedBase) -> Adapter:
    draw, weights = torch.Generator().manual_seed(0), {}
    for name, (out, columns) in base.matrices.items():
        if name.split(".")[-2] in CHANGED:
            A, B = (
                torch.randn(RANK, columns, generator=draw),
                torch.randn(out, RANK, generator=draw),
            )
            norm = base.checkpoint.tensor(name).norm()
            weights[name] = Lora(A, B * SIZE * norm / (B @ A).norm())
    return Adapter(weights, base.identity)


def merged(base: PackedBase, folder: Path) -> dict[str, Path]:
    """Label → the folder of a merge. What it would find is hidden from it for the last two."""
    nothing: Any = lambda *_: None  # noqa: E731
    hidden = {
        "merged onto the original weights": (),
        "merged onto Q + L·R, with H": ("_original",),
        "merged onto Q + L·R, without H": ("_original", "_kept_hessians"),
    }
    found = {}
    for number, (label, names) in enumerate(hidden.items()):
        before = {name: getattr(merge, name) for name in names}
        for name in names:
            setattr(merge, name, nothing)
        out = folder / f"merged-{number}"
        edgepack.merge_adapters(base.folder, [("a", 1.0)], out)
        for name, function in before.items():
            setattr(merge, name, function)
        found[label] = out
    return found


def kls(shared: Path, folder: Path) -> list[dict[str, Any]]:
    base = packed(shared, folder)
    place = files.place(base.folder, "a")
    files.write(place, random_adapter(base), base)
    deltas = files.read(place, base).weights
    models = {label: Model.from_path(out) for label, out in merged(base, folder).items()}
    models |= {
        "beside the packed model": Model("", base.file, base.factors, ((place / files.FILE, 1.0),)),
        "left out": Model("", base.file, base.factors),
    }
    write_plain(folder / "original.gguf", Merged(open_checkpoint(MODEL), deltas, {"merged": ""}))
    text = (shared / "data/text/wikitext2-raw/wiki.test.raw").read_text(encoding="utf-8")
    with ExitStack() as stack:
        reference = stack.enter_context(Model("", folder / "original.gguf").open(CONTEXT))
        opened = {name: stack.enter_context(m.open(CONTEXT)) for name, m in models.items()}
        chunks = Text("wiki.test.raw", text).chunks(reference, CONTEXT, TOKENS)
        found = finish(divergence(reference, opened, chunks))
    return [{"name": name, **result.as_dict()} for name, result in found.items()]


def speeds(folder: Path) -> dict[str, float]:
    """Tokens a second of plain q4_0, without and with empty factors, in turns."""
    checkpoint = open_checkpoint(MODEL)
    parts = {s.name: WeightFormat("q4_0") for s in checkpoint.specs.values() if len(s.shape) > 1}

    def load(name: str) -> FactoredWeight:
        return FactoredWeight(formats.get("q4_0").quantize(checkpoint.tensor(name)))

    opened, found = {}, {}
    for label, adapters in (("plain", False), ("adapters: true", True)):
        place = folder / label.split(":")[0]
        place.mkdir()
        options = GraphOptions(CONTEXT, adapters=adapters)
        path = finish(onnx.write_folder(place, checkpoint, parts, load, options))
        opened[label], found[label] = OnnxRuntime(path, context=CONTEXT, threads=1), []
    for _ in range(TURNS):
        for label, runtime in opened.items():
            start = time.perf_counter()
            count = len(list(runtime.generate([1, 2, 3, 4], LENGTH, Sampling(ignore_eos=True))))
            found[label].append(count / (time.perf_counter() - start))
    return {label: median(values) for label, values in found.items()}


def kl_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| the adapter is | mean KL | same top token |", "|---|---:|---:|"]
    for r in rows:
        kl = f"{r['kl_mean']:.4f} ± {r['kl_error']:.4f}"
        lines.append(f"| {r['name']} | {kl} | {r['top1']:.1%} |")
    return "\n".join(lines)


def speed_table(speed: Mapping[str, float]) -> str:
    rows = [f"| {label} | {value:.1f} |" for label, value in speed.items()]
    return "\n".join(["| ONNX graph | tokens/s |", "|---|---:|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {"speed": speeds(Path(folder)), "rows": kls(options.shared.resolve(), Path(folder))}
    text = f"{kl_table(found['rows'])}\n\n{speed_table(found['speed'])}"
    print(text)
    (RESULTS / "merging.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    (RESULTS / "merging.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
