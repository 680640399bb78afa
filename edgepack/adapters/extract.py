"""A LoRA adapter out of a fine-tune and its base: ΔW of every linear weight at a low rank.

One weight of each model is in memory at a time; the pairs stay. What an adapter cannot hold
(embeddings, norms, biases, a vocabulary that has grown) is reported with its size.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from edgepack.adapters import gguf
from edgepack.adapters.adapter import Lora
from edgepack.adapters.difference import Choice, factor
from edgepack.adapters.gguf import TYPES, Dtype
from edgepack.checkpoint import Checkpoint
from edgepack.checkpoint.peft import CONFIG, WEIGHTS
from edgepack.checkpoint.values import pair_to_hf
from edgepack.core.artifact import digest
from edgepack.core.progress import Progress, Steps
from edgepack.core.tables import markdown
from edgepack.core.untrusted import shorten
from edgepack.errors import EdgepackError
from edgepack.export.peft import write_pairs

STAGE = "extract"
FILE, REPORT, CARD = "adapter.gguf", "extract.json", "README.md"
README = """\
---
library_name: peft
{header}---
LoRA adapter for **{base}**: the difference to **{finetune}**, weight by weight, as a truncated SVD
by edgepack. `PeftModel.from_pretrained(model, FOLDER)` adds it, llama.cpp takes `--lora {file}`.

Of the difference of all linear weights, ‖ΔW − B·A‖ / ‖ΔW‖ = {error:.2%} is left out.
{left}
{table}
"""


@dataclass(frozen=True)
class Weight:
    """A weight with a pair. `change` is ‖ΔW‖ / ‖W‖, `error` what its pair leaves of ΔW, as
    ‖ΔW − B·A‖ / ‖ΔW‖ of the values as stored."""

    name: str
    rank: int
    change: float
    error: float


@dataclass(frozen=True)
class Left:
    """A tensor whose difference is not in the adapter. `change` is ‖ΔW‖ / ‖W‖; None if the two
    models do not have it in one shape."""

    name: str
    change: float | None
    why: str


@dataclass(frozen=True)
class Extracted:
    """Pairs by weight, what they are worth, what is left out, and which linear weights were not
    asked for."""

    base: str
    finetune: str
    weights: tuple[Weight, ...]
    left: tuple[Left, ...]
    error: float
    loras: Mapping[str, Lora] = field(repr=False, compare=False)
    skipped: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The report."""
        return {
            "base": self.base,
            "finetune": self.finetune,
            "error": self.error,
            "weights": [asdict(weight) for weight in self.weights],
            "left": [asdict(left) for left in self.left],
            "skipped": list(self.skipped),
        }

    def table(self) -> list[list[str]]:
        """The weights as rows of text, with a header."""
        rows = [
            [w.name.removesuffix(".weight"), str(w.rank), f"{w.change:.2%}", f"{w.error:.2%}"]
            for w in self.weights
        ]
        return [["weight", "rank", "change", "left out"], *rows]


@dataclass(frozen=True)
class Wanted:
    """Which linear weights get a pair: those whose names, without ``.weight``, contain one of
    `include` (empty: all) and none of `exclude`, as regular expressions."""

    include: tuple[re.Pattern[str], ...] = ()
    exclude: tuple[re.Pattern[str], ...] = ()

    def __contains__(self, name: str) -> bool:
        module = name.removesuffix(".weight")
        if self.include and not any(pattern.search(module) for pattern in self.include):
            return False
        return not any(pattern.search(module) for pattern in self.exclude)


ALL = Wanted()


def extract(
    finetune: Checkpoint,
    base: Checkpoint,
    choice: Choice,
    dtype: Dtype = "f16",
    wanted: Wanted = ALL,
) -> Steps[Extracted]:
    """Pairs for the difference of two models of one family and size. Values are rounded to `dtype`.
    Raises `EdgepackError` if linear weights differ in shape, or none that is wanted in anything."""
    names = _name(base), _name(finetune)
    _check_family(finetune, base)
    skipped = tuple(name for name in base.specs if _is_linear(base, name) and name not in wanted)
    if all(name in skipped for name in base.specs if _is_linear(base, name)):
        raise EdgepackError(
            "no linear weight has a name that is asked for",
            hint=f"names are such as {next(iter(skipped)).removesuffix('.weight')}",
        )
    left, weights = list(_unmatched(finetune, base)), []
    loras: dict[str, Lora] = {}
    lost = total = 0.0
    shared = [name for name in base.specs if name in finetune.specs and name not in skipped]
    for number, name in enumerate(shared):
        yield Progress(STAGE, number, len(shared), name)
        if not _same_shape(finetune, base, name):
            shapes = f"is {_shape(finetune, name)}, {_shape(base, name)} in the base"
            left.append(Left(name, None, shapes))
            continue
        W = base.tensor(name)
        delta = finetune.tensor(name) - W
        norm, size = float(delta.norm()), float(W.norm())
        _check_finite(name, norm, names)
        if norm == 0:
            continue
        change = norm / size if size else math.inf
        if not _is_linear(base, name):
            left.append(Left(name, change, "is no linear weight"))
            continue
        lora = factor(delta, choice)
        if not lora.rank:
            lost, total = lost + norm**2, total + norm**2
            left.append(Left(name, change, f"has no singular value above {choice.epsilon:g}"))
            continue
        loras[name] = _rounded(lora, dtype, even=choice.even)
        rest = float((delta - loras[name].delta()).norm())
        lost, total = lost + rest**2, total + norm**2
        weights.append(Weight(name, loras[name].rank, change, rest / norm))
    if not loras and total:
        raise EdgepackError(
            f"no linear weight differs by a singular value above {choice.epsilon:g}",
            hint="give a smaller --sv-epsilon",
        )
    if not loras:
        raise EdgepackError(
            f"the linear weights of {names[1]} are those of {names[0]}",
            hint="name a fine-tune and its base; what else differs is no part of a LoRA",
        )
    error = math.sqrt(lost / total)
    return Extracted(*names, tuple(weights), tuple(left), error, loras, skipped)


def _is_linear(base: Checkpoint, name: str) -> bool:
    """Whether an adapter can hold a weight: embeddings are read row by row, not multiplied by."""
    spec = base.specs[name]
    return spec.is_matrix and not spec.role.endswith("_embd")


def _same_shape(finetune: Checkpoint, base: Checkpoint, name: str) -> bool:
    """Whether a difference can be taken. Only a vocabulary may have grown."""
    if finetune.specs[name].shape == base.specs[name].shape:
        return True
    if _is_linear(base, name) and base.specs[name].role != "output":
        raise EdgepackError(
            f"{_name(finetune)}: {shorten(name, 80)} is {_shape(finetune, name)}, "
            f"{_shape(base, name)} in {_name(base)}",
            hint="name the base that the model was fine-tuned from",
        )
    return False


def _shape(model: Checkpoint, name: str) -> list[int]:
    return list(model.specs[name].shape)


def _check_finite(name: str, norm: float, names: tuple[str, str]) -> None:
    if not math.isfinite(norm):
        raise EdgepackError(
            f"{shorten(name, 80)} holds numbers that are not finite in {names[0]} or {names[1]}",
            hint="one of the models is damaged: fetch it again",
        )


def write(folder: Path, found: Extracted, base: Checkpoint, dtype: Dtype = "f16") -> list[str]:
    """Write the PEFT files, adapter.gguf (if the family has a place in GGUF), a card and the report
    into `folder`; the files' names."""
    loras = found.loras

    def pair(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return pair_to_hf(base, name, loras[name].lora_A, loras[name].lora_B)

    write_pairs(folder, loras, pair, base=found.base, dtype=TYPES[dtype])
    names = [CONFIG, WEIGHTS]
    if base.architecture.gguf:
        gguf.write(folder / FILE, loras, base, {}, dtype)
        names.append(FILE)
    left = "".join(f"- left out: {line}\n" for line in describe(found.left))
    on_hub = base.source.get("kind") == "hub"  # the hub looks for any other name in vain
    text = README.format(
        header=f"base_model: {str(base.source['model']).partition('@')[0]}\n" if on_hub else "",
        base=found.base,
        finetune=found.finetune,
        file=FILE,
        error=found.error,
        left=f"\n{left}" if left else "",
        table="\n".join(markdown(found.table())),
    )
    (folder / CARD).write_text(text, encoding="utf-8")
    names.append(CARD)
    files = {name: digest(folder / name) for name in names}
    report = json.dumps({**found.as_json(), "files": files}, indent=1)
    (folder / REPORT).write_text(report + "\n", encoding="utf-8")
    return [*names, REPORT]


def describe(left: tuple[Left, ...]) -> list[str]:
    """What an adapter cannot hold, a line for each tensor."""
    return [
        f"{item.name} {item.why}"
        + ("" if item.change is None else f", and differs by {item.change:.2%}")
        for item in left
    ]


def _rounded(lora: Lora, dtype: Dtype, *, even: bool) -> Lora:
    """The pair as it is stored."""
    pair = lora.balanced() if even else lora
    return Lora(*(part.to(TYPES[dtype]).float() for part in (pair.lora_A, pair.lora_B)))


def _name(model: Checkpoint) -> str:
    """A name without this machine's folders."""
    return str(getattr(model, "place", None) or model.source["model"])


def _check_family(finetune: Checkpoint, base: Checkpoint) -> None:
    ours, theirs = base.architecture, finetune.architecture
    if ours.name != theirs.name and (not ours.gguf or ours.gguf != theirs.gguf):
        raise EdgepackError(
            f"{_name(finetune)} is a {theirs.name} model, {_name(base)} a {ours.name} model",
            hint="name the base that the model was fine-tuned from",
        )


def _unmatched(finetune: Checkpoint, base: Checkpoint) -> list[Left]:
    """Tensors that only one of the models has. Another number of layers is refused."""
    counts = base.dimensions.num_hidden_layers, finetune.dimensions.num_hidden_layers
    if counts[0] != counts[1]:
        raise EdgepackError(
            f"{_name(base)} has {counts[0]} layers, {_name(finetune)} {counts[1]}",
            hint="name the base that the model was fine-tuned from",
        )
    ours, theirs = base.specs, finetune.specs
    return [
        *(Left(name, None, "is in the fine-tune only") for name in theirs if name not in ours),
        *(Left(name, None, "is in the base only") for name in ours if name not in theirs),
    ]
