"""Everything long that edgepack does, once each on models of some hundred thousand weights: what is
prepared, the command, and which of its files hold times.

`benchmarks.kills` kills these runs, `benchmarks.full_disk` lets their disks fill up.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import edgepack
from edgepack import formats
from edgepack.adapters import files as adapter_files
from edgepack.adapters.base import PackedBase
from edgepack.checkpoint import open_checkpoint
from tests.support.adapters import random_adapter
from tests.support.recipes import write_texts
from tests.support.tiny import make_model, write_gguf

SELF = {"tokens": 1024, "sequence_length": 64}
TEXT = {**SELF, "source": "text.txt"}
MEASURE = {"measure": {"tokens": 256, "context": 64}}
UNMEASURED = {"measure": {"tokens": 0}}
TUNE = {"data": "rows.jsonl", "steps": 6, "r": 2, "batch_size": 2, "evaluate_every": 2}
PACKED = {"format": "q4_0", "rank": 4, "factors": "f16", "iterations": 1, "damping": [0.03]}
TWO = [{"model": "a", "parameters": {"weight": 0.4}}, {"model": "b", "parameters": {"weight": 0.6}}]
DARE = {"merge_method": "dare_ties", "base_model": "model", "models": TWO}
FISHER = {
    "merge_method": "linear",
    "weighted": "fisher",
    "models": [{**one, "text": "text.txt"} for one in TWO],
}
BUILD = ("build", "recipe.yaml", "--out", "{}/out", "--force")
SETS = ("--set", "evaluate_every=2", "--set", "held_out=0.2")
TUNING = ("finetune", "{}/out", "--data", "rows.jsonl", "--steps", "6", "--batch-size", "2", *SETS)


@dataclass(frozen=True)
class Long:
    """A run. In `command`, {} is the folder of this run, with ``cache`` and ``out``; paths are
    relative to where `prepare` wrote. `start` is copied to ``out`` before a run begins."""

    name: str
    command: tuple[str, ...]
    prepare: Callable[[Path], None]
    start: str | None = None
    timed: tuple[str, ...] = ()
    """Names of files that hold times, or are made of them: compared by their structure."""


def _write(folder: Path, **sections: Any) -> None:
    """A recipe, and the texts that it may name."""
    write_texts(folder, 8)
    model = {} if "merge" in sections else {"model": "model"}
    recipe = {**model, "calibrate": TEXT, "export": UNMEASURED, **sections}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))


def _recipe(family: str = "llama", **sections: Any) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        given: dict[str, Any] = {"intermediate": 128, "tied": False} if family == "llama" else {}
        make_model(folder / "model", family, **given)
        _write(folder, **sections)

    return prepare


def _merged(**sections: Any) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        for seed, name in enumerate(("model", "a", "b")):
            make_model(folder / name, seed=seed, dtype=torch.float32)
        _write(folder, **sections)

    return prepare


def _of_ggufs(folder: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        make_model(folder / f"hf-{name}", seed=seed)
        write_gguf(folder / f"{name}.gguf", open_checkpoint(str(folder / f"hf-{name}")), "F16")
    models = [{**one, "model": f"{one['model']}.gguf"} for one in TWO]
    _write(folder, merge={"merge_method": "linear", "models": models})


def _on_grids(folder: Path) -> None:
    make_model(folder / "model")
    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    for name, W in tensors.items():
        if W.dim() == 2:
            kind = formats.get("q8_0" if "embed" in name else "q4_0")
            tensors[name] = kind.quantize(W.float()).dequantize().to(W.dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    _write(folder, compress={**PACKED, "embeddings": "q8_0"})


def _packed(target: str = "gguf", *, adapter: bool = False) -> Callable[[Path], None]:
    """A finished folder ``packed``, with an adapter if that is asked for."""

    def prepare(folder: Path) -> None:
        _recipe(compress=PACKED)(folder)
        edgepack.build(folder / "recipe.yaml", target, out=folder / "packed")
        if adapter:
            base = PackedBase.open(folder / "packed")
            place = folder / "packed" / "adapters" / "rows"
            place.mkdir(parents=True)
            adapter_files.write(place, random_adapter(base), base)

    return prepare


QUICK = ("--prompt", "8", "--decode", "4", "--rounds", "2", "--threads", "1", "--no-limits")
PICTURES = tuple(f"roofline{dark}.{kind}" for dark in ("", "-dark") for kind in ("png", "svg"))
TIMED_TUNING = ("finetune.json", "report.md", "loss.png", "manifest.json")
RUNS = (
    Long(
        "a size, recovered",
        BUILD,
        _recipe(
            calibrate=SELF,
            export=MEASURE,
            compress={"target_size": "70KB", "ranks": [0, 4]},
            recover={"steps": 4},
        ),
    ),
    Long(
        "sliced, fine-tuned, packed",
        BUILD,
        _recipe(
            calibrate=SELF,
            export=MEASURE,
            slice={"width": 32, "round_to": 32, "recover": {"steps": 4, "rank": 4}},
            compress={"format": "q4_0", "rank": 4, "factors": "f16"},
        ),
    ),
    Long(
        "shortcuts, ONNX",
        (*BUILD, "--target", "onnx"),
        _recipe(
            calibrate=SELF,
            export=MEASURE,
            slice={"method": "per_block", "sparsity": 0.5, "allow_growth": True},
            compress={"format": "q4_0"},
            recover={"steps": 4},
        ),
    ),
    Long(
        "layer by layer, ONNX",
        (*BUILD, "--target", "onnx"),
        _recipe(
            calibrate={**SELF, "objective": "layer"},
            export=MEASURE,
            compress={"format": "int4_g32", "embeddings": "int4_g32"},
        ),
    ),
    Long(
        "a checkpoint",
        (*BUILD, "--target", "checkpoint"),
        _recipe(calibrate=SELF, export=MEASURE, slice={"width": 32, "round_to": 32}),
    ),
    Long("experts", BUILD, _recipe("qwen3_moe", compress=PACKED)),
    Long("mixers", BUILD, _recipe("granitemoehybrid", compress=PACKED)),
    Long("exact grids", BUILD, _on_grids),
    Long(
        "factors merged",
        BUILD,
        _recipe(compress=PACKED, export={**UNMEASURED, "merge_factors": True}),
    ),
    Long("a merge, packed", BUILD, _merged(merge=DARE, compress=PACKED)),
    Long(
        "a recipe with finetune", BUILD, _recipe(compress=PACKED, finetune=TUNE), None, TIMED_TUNING
    ),
    Long(
        "finetune, stack",
        (*TUNING, "--mode", "stack", "-r", "2", "--force"),
        _packed(),
        "packed",
        TIMED_TUNING,
    ),
    Long(
        "finetune, factors",
        (*TUNING, "--mode", "factors", "--force"),
        _packed(),
        "packed",
        TIMED_TUNING,
    ),
    Long(
        "finetune, ONNX",
        (*TUNING, "--mode", "factors", "--force"),
        _packed("onnx"),
        "packed",
        TIMED_TUNING,
    ),
    Long("merge, DARE-TIES", ("merge", "recipe.yaml", "{}/out", "--force"), _merged(merge=DARE)),
    Long("merge, fisher", ("merge", "recipe.yaml", "{}/out", "--force"), _merged(merge=FISHER)),
    Long("merge of GGUF", ("merge", "recipe.yaml", "{}/out", "--force"), _of_ggufs),
    Long(
        "merge-adapter",
        ("merge-adapter", "packed", "rows", "--out", "{}/out", "--force"),
        _packed(adapter=True),
    ),
    Long(
        "extract-lora",
        ("extract-lora", "a", "b", "--rank", "4", "--out", "{}/out"),
        _merged(merge=DARE),
    ),
    Long(
        "bench",
        ("bench", "packed", *QUICK, "--out", "{}/out"),
        _packed(),
        None,
        ("bench.json", "bench.md", *PICTURES),
    ),
    Long(
        "compare",
        ("compare", "recipe.yaml", "--sizes", "130KB", "--out", "{}/out"),
        _recipe(
            compress={
                "candidates": ["q4_0", "q8_0"],
                "ranks": [0],
                "damping": [0.1],
                "bits_per_weight": 6,
            },
            export={"measure": {"text": "text.txt", "tokens": 128, "context": 64}},
        ),
        None,
        ("compare.json", "compare.md", "compare.svg", "compare.png"),
    ),
)
