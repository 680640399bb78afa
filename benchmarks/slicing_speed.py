"""Tokens per second of the dense model and of its slices, in transformers and in llama.cpp.

    python -m benchmarks.slicing_speed [--rows global:512,per_block:512] [--shared ../shared]

SmolLM2-135M-Instruct in float32 in transformers (a forward pass over sequences of 128 tokens, at
batch 1 and at `--batch`, the throughput of SliceGPT's table), and as f16 in llama.cpp where the
slice is a stock model (128 tokens of prompt, 32 more, one by one). Models take turns; medians of 5
rounds, and what of the dense model's speed they are. Rows as in `benchmarks.slicing`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from benchmarks.same_type import MODEL, RESULTS
from benchmarks.slicing import recipe, sliced
from edgepack.checkpoint import Checkpoint, open_checkpoint
from edgepack.checkpoint.save import save
from edgepack.core.progress import finish
from edgepack.export.gguf import write_plain
from edgepack.metrics.speed import speeds
from edgepack.runtimes.models import Model

LENGTH, ROUNDS = 128, 5


def checkpoints(rows: list[str], shared: Path) -> dict[str, Checkpoint]:
    """The dense model and its slices, made if they are not in the cache."""
    found: dict[str, Checkpoint] = {"dense": open_checkpoint(MODEL)}
    found |= {row: sliced(recipe(row, shared, Path())) for row in rows}
    return found


@torch.no_grad()
def forward(model: Any, batch: int) -> float:
    """Tokens per second of one forward pass."""
    tokens = torch.randint(1000, 40000, (batch, LENGTH))
    start = time.perf_counter()
    model(tokens, use_cache=False)
    return batch * LENGTH / (time.perf_counter() - start)


def in_transformers(folders: dict[str, Path], batches: list[int]) -> dict[str, list[float]]:
    """Medians by model, one per batch size."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    models = {
        name: load(folder, trust_remote_code=True, dtype=torch.float32).eval()
        for name, folder in folders.items()
    }
    found: dict[str, list[float]] = {name: [] for name in models}
    for batch in batches:
        turns: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(ROUNDS + 1):
            for name, model in models.items():
                turns[name].append(forward(model, batch))
        for name, values in turns.items():
            found[name].append(median(values[1:]))  # the first round warms up
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default="global:512,global:432,per_block:512,per_block:432")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    made = checkpoints(options.rows.split(","), options.shared.resolve())
    with tempfile.TemporaryDirectory() as name:
        folders = {key: Path(name) / key.replace(":", "-") for key in made}
        stock = {}
        for key, checkpoint in made.items():
            folders[key].mkdir()
            finish(save(checkpoint, checkpoint.tensor, folders[key], "save"))
            if checkpoint.own_code() is None:
                path = folders[key].with_suffix(".gguf")
                write_plain(path, checkpoint)
                stock[key] = Model(key, path).open
        found = in_transformers(folders, [1, options.batch])
        llama = finish(speeds(stock, ROUNDS))
    columns = {
        key: [*values, *([llama[key].prompt, llama[key].decode] if key in llama else [])]
        for key, values in found.items()
    }
    lines = [
        f"| tokens/s | transformers, batch 1 | batch {options.batch} | llama.cpp prompt | decode |",
        "|---|---:|---:|---:|---:|",
    ]
    for key, values in columns.items():
        cells = [f"{v:.0f} (×{v / d:.2f})" for v, d in zip(values, columns["dense"], strict=False)]
        lines.append(f"| {key} | " + " | ".join(cells + ["–"] * (4 - len(cells))) + " |")
    print("\n".join(lines))
    (RESULTS / "slicing_speed.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
