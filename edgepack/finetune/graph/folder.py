"""The folder of a training graph: the graph, its data, the first values of what is trained, and a
JSON file that says which part of the flat vector is which matrix."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from edgepack.core.disk import sync_tree
from edgepack.core.progress import Progress, Steps
from edgepack.core.untrusted import Untrusted, read_json, shorten, validate
from edgepack.core.weights import FactoredWeight
from edgepack.errors import EdgepackError, ExportError
from edgepack.export import _onnx_graph
from edgepack.export.profiles import BROWSER
from edgepack.finetune.graph.base import Base, open_base
from edgepack.finetune.graph.options import Options, Parameter, parameters
from edgepack.finetune.graph.step import step_graph

STAGE = "export-training"
GRAPH, ABOUT, INITIAL, PAGE = "training.onnx", "training.json", "theta.f32", "train.html"
"""`INITIAL` is the flat vector of parameters before the first step, little-endian float32."""
SEED = 0
AGAIN = "write the folder again with edgepack export-training"

Count = Annotated[int, Field(ge=1, le=1 << 40)]
Name = Annotated[str, Field(min_length=1, max_length=1000)]


class Matrix(Untrusted):
    """An entry of `About.parameters`, see `options.Parameter`."""

    weight: Name
    block: Annotated[int, Field(ge=0, le=1 << 24)]
    part: Annotated[str, Field(pattern="^[LR]$")]
    shape: Annotated[list[Count], Field(min_length=2, max_length=2)]
    offset: Annotated[int, Field(ge=0, le=1 << 40)]


class About(Untrusted):
    """training.json. `digest` is that of the output folder that it was made from. Rows have
    `length` tokens (None: any number up to `context`), and there are `batch` of them in a step."""

    mode: Annotated[str, Field(pattern="^(factors|stack)$")]
    batch: Count
    length: Count | None
    context: Count
    vocab_size: Count
    size: Count
    digest: str | None = None
    data: Annotated[list[Name], Field(max_length=10_000)]
    parameters: Annotated[list[Matrix], Field(min_length=1, max_length=1_000_000)]

    def matrices(self) -> list[Parameter]:
        """The trained matrices in the order of their offsets."""
        return [
            Parameter(p.weight, p.block, p.part, (p.shape[0], p.shape[1]), p.offset)
            for p in self.parameters
        ]


def read_about(folder: Path) -> About:
    """Read training.json and check that its matrices fill the vector."""
    path = folder / ABOUT
    place = f"{shorten(str(folder), 100)}/{ABOUT}"
    try:
        content = read_json(path, place=place)
    except OSError as error:
        raise EdgepackError(f"{place}: cannot be read ({error.strerror})", hint=AGAIN) from None
    about, end = validate(About, content, place, EdgepackError, hint=AGAIN), 0
    for parameter in about.matrices():
        if parameter.offset != end:
            raise EdgepackError(f"{place}: {parameter.name} does not begin at {end}", hint=AGAIN)
        end = parameter.stop
    if end != about.size:
        raise EdgepackError(f"{place}: size is {about.size}, its matrices {end}", hint=AGAIN)
    return about


def export_training(source: Path, out: Path, options: Options) -> Steps[Path]:
    """Write the training graph of the output folder `source` into the new folder `out`.

    Raises `ExportError` if `out` exists or cannot be written. A killed run leaves `out` absent.
    """
    base = open_base(source)
    _check(base, options)
    if out.exists() or out.is_symlink():
        raise ExportError(f"{shorten(str(out), 100)}: exists", hint="--out DIR writes elsewhere")
    work = out.with_name(f".{out.name}.{secrets.token_hex(8)}.partial")
    try:
        work.mkdir(parents=True)
        yield from write_folder(work, base, options)
        sync_tree(work)
        work.rename(out)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ExportError(
            f"{shorten(str(out), 100)}: cannot be written ({reason})",
            hint="--out DIR writes elsewhere",
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def _check(base: Base, options: Options) -> None:
    most = base.checkpoint.dimensions.max_position_embeddings
    if options.length is not None and options.length > most:
        raise EdgepackError(
            f"rows of {options.length} tokens: the model knows {most} positions",
            hint=f"--length {most}, or fewer",
        )
    if options.mode == "stack" and options.rank >= base.checkpoint.dimensions.hidden_size:
        raise EdgepackError(
            f"rank {options.rank} is not below the model's width", hint="4 to 64 are usual"
        )


def write_folder(folder: Path, base: Base, options: Options) -> Steps[None]:
    """Write all files into an empty folder."""
    graph, trained = step_graph(base, options), parameters(base, options)
    dimensions = base.checkpoint.dimensions
    for done, name in enumerate(_onnx_graph.write(graph, folder / GRAPH, BROWSER)):
        yield Progress(STAGE, done, len(graph.stored), name)
    yield Progress(STAGE, len(graph.stored), len(graph.stored), INITIAL)
    with (folder / INITIAL).open("wb") as file:
        for matrix in _first_values(base, options, trained):
            file.write(matrix.astype("<f4").tobytes())
    about = {
        "mode": options.mode,
        "batch": options.batch,
        "length": options.length,
        "context": options.length or min(options.context, dimensions.max_position_embeddings),
        "vocab_size": dimensions.vocab_size,
        "size": trained[-1].stop,
        "data": sorted(path.name for path in folder.glob(f"{GRAPH}_data*")),
        "optimizer": asdict(options.optimizer),
        "base": dict(base.checkpoint.source),
        "digest": base.digest,
        "parameters": [asdict(parameter) for parameter in trained],
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name(PAGE), folder / PAGE)


def _first_values(
    base: Base, options: Options, trained: list[Parameter]
) -> Iterator[NDArray[np.float32]]:
    """The first values of each matrix: the model's factors, or those of LoRA (uniform up to
    1/√in for lora_A as in PEFT, 0 for lora_B)."""
    load, generator = lru_cache(maxsize=1)(base.load), torch.Generator().manual_seed(SEED)
    for parameter in trained:
        if options.mode == "factors":
            yield _factor(load(parameter.weight), parameter.part).T.numpy()
        elif parameter.part == "L":
            yield np.zeros(parameter.shape, np.float32)
        else:
            uniform = torch.rand(parameter.shape, generator=generator).mul(2).sub(1)
            yield (uniform / parameter.shape[0] ** 0.5).numpy()


def _factor(weight: FactoredWeight, part: str) -> Tensor:
    factor = weight.L if part == "L" else weight.R
    assert factor is not None, "the formats promise factors"
    return factor.dequantize()
