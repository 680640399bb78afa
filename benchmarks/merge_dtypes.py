"""Why results in bfloat16 differ from mergekit's: ties on two models whose weights are bfloat16.

    python -m benchmarks.merge_dtypes --mergekit VENV/bin/mergekit-yaml

Both programs merge the same small Llamas with `dtype: float32` and with `dtype: bfloat16`. "At the
cut" are elements whose change is, in one of the models, exactly as large as the smallest one that
is kept: changes of bfloat16 weights have few different values, and which of equals are kept is
arbitrary. "exact" is mergekit's float32 result.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.same_type import RESULTS
from tests.support.tiny import make_model

PAGE = "merge_dtypes.md"
DENSITY, CHANGE = 0.5, 0.1
"""Share of changes that ties keeps; size of the changes, relative to the weights."""
Tensors = dict[str, Tensor]


def make_models(folder: Path) -> dict[str, Tensors]:
    """A base and two models near it, all bfloat16."""
    make_model(folder / "base", hidden=256, intermediate=512)
    found = {"base": load_file(folder / "base/model.safetensors")}
    for seed, name in enumerate("ab"):
        shutil.copytree(folder / "base", folder / name)
        draw = torch.Generator().manual_seed(seed)
        found[name] = {
            key: (W + CHANGE * W.float().std() * torch.randn(W.shape, generator=draw)).to(W.dtype)
            for key, W in found["base"].items()
        }
        save_file(found[name], folder / name / "model.safetensors", metadata={"format": "pt"})
    return found


def merged(folder: Path, program: list[str], dtype: str) -> Tensors:
    """The result of a program."""
    recipe = {
        "merge_method": "ties",
        "base_model": str(folder / "base"),
        "models": [
            {"model": str(folder / name), "parameters": {"weight": 0.5, "density": DENSITY}}
            for name in "ab"
        ],
        "dtype": dtype,
    }
    config, out = folder / "c.yaml", folder / "out"
    config.write_text(yaml.safe_dump(recipe))
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run([*program, str(config), str(out)], check=True, stdout=subprocess.DEVNULL)
    return load_file(out / "model.safetensors")


def at_the_cut(models: dict[str, Tensors], name: str) -> Tensor:
    """Elements of a tensor whose change is as large as the smallest one that is kept."""
    found = torch.zeros(models["base"][name].shape, dtype=torch.bool)
    for model in "ab":
        change = (models[model][name].float() - models["base"][name].float()).abs()
        kept = max(1, int(DENSITY * change.numel()))
        found |= change == change.flatten().sort(descending=True).values[kept - 1]
    return found


def table(models: dict[str, Tensors], results: dict[tuple[str, str], Tensors]) -> Iterator[str]:
    """A row for every pair of results."""
    exact = results["mergekit", "float32"]
    cut = {name: at_the_cut(models, name) for name in exact}
    yield "| | elements | differ | most | at the cut | differ elsewhere | most elsewhere |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    pairs = [
        (f"edgepack − mergekit, {dtype}", ("edgepack", dtype), ("mergekit", dtype))
        for dtype in ("float32", "bfloat16")
    ]
    pairs += [
        (f"{who} in bfloat16 − exact", (who, "bfloat16"), ("mergekit", "float32"))
        for who in ("edgepack", "mergekit")
    ]
    for title, one, other in pairs:
        gaps = {n: (results[one][n].double() - results[other][n].double()).abs() for n in exact}
        everywhere = torch.cat([gap.flatten() for gap in gaps.values()])
        elsewhere = torch.cat([gap[~cut[n]] for n, gap in gaps.items()])
        counts = [len(everywhere), int((everywhere > 0).sum()), f"{float(everywhere.max()):.2g}"]
        counts += [sum(int(mask.sum()) for mask in cut.values()), int((elsewhere > 0).sum())]
        yield "| " + " | ".join(map(str, [title, *counts, f"{float(elsewhere.max()):.2g}"])) + " |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mergekit", required=True, help="mergekit-yaml of its own environment")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    programs = {
        "edgepack": [sys.executable, "-m", "edgepack", "merge"],
        "mergekit": [given.mergekit, "--quiet"],
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["EDGEPACK_CACHE"] = str(folder / "cache")
        models = make_models(folder)
        results = {
            (who, dtype): merged(folder, program, dtype)
            for who, program in programs.items()
            for dtype in ("float32", "bfloat16")
        }
    lines = list(table(models, results))
    (given.results / PAGE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
