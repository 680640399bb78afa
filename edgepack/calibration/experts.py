"""Second moments of experts, of which many see few tokens.

An expert's mean H_e over its n_e tokens is drawn towards the mean H̄ over the tokens of all experts
of the block: (n_e·H_e + m·H̄) / (n_e + m), with m = one token for each column. An expert that no
token meets gets H̄. The mean counts n_e + 1 of the calibration's tokens, so that the errors of an
expert that is seldom met weigh little, and those of no expert nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar

from safetensors import safe_open

from edgepack.architectures.base import LINEAR_ROLES
from edgepack.calibration.gram import Gram
from edgepack.calibration.moments import OUT, Moments
from edgepack.core.parts import stem
from edgepack.core.weight_files import read_about

Key = TypeVar("Key")

ABOUT = "experts.json"
"""What a block's folder says of its experts (`few`)."""
FEW = 32
"""Tokens for each column of a weight below which H overfits."""


def stacks(names: Collection[str]) -> list[list[str]]:
    """The weights of a block that belong to experts, those of one role together."""
    found: dict[str, list[str]] = {}
    for name in names:
        if stem(name) in LINEAR_ROLES and name.removeprefix(stem(name) + ".").isdecimal():
            found.setdefault(stem(name), []).append(name)
    return list(found.values())


def draw_together(moments: Moments, names: Collection[str]) -> None:
    """Draw the moments of experts towards their mean, in place. `names` are weights of a block, of
    every stack all or none, those that no token met included."""
    for stack in stacks(names):
        for held_out in (False, True):
            counts = [moments.met.get((name, held_out), 0) for name in stack]
            if not sum(counts):
                continue  # `Moments.save` says that there are no tokens
            for suffix in ("", OUT):
                _draw(moments.sums, [(name + suffix, held_out) for name in stack], counts)
            if not held_out:
                squares = {name: Gram([square[None]]) for name, square in moments.squares.items()}
                _draw(squares, stack, counts)
                moments.squares |= {name: squares[name].panels[0][0] for name in stack}


def _draw(sums: dict[Key, Gram], keys: list[Key], counts: list[int]) -> None:
    there = [sums[key] for key in keys if key in sums]
    if not there:
        return
    mean = there[0].copy()
    for gram in there[1:]:
        mean.merge(gram)
    prior = mean.n
    mean.scale(prior / sum(counts))
    for key, count in zip(keys, counts, strict=True):
        if key in sums:
            sums[key].merge(mean)
        else:
            sums[key] = mean.copy()
        sums[key].scale((count + 1) / (count + prior))


def about(folder: Path, names: Collection[str]) -> dict[str, int]:
    """`few` of a block's folder of Hessians; nothing for one without experts."""
    files = {name: folder / name for stack in stacks(names) for name in stack}
    met, widths = {}, {}
    for name, path in files.items():
        with safe_open(path, framework="pt") as file:
            widths[name] = file.get_slice(f"{name}.imatrix").get_shape()[0]
        met[name] = read_about(path)["met"]
    return few(met, widths) if files else {}


def few(met: Mapping[str, int], widths: Mapping[str, int]) -> dict[str, int]:
    """How many of a block's experts there are, how many were met by fewer than `FEW` tokens a
    column, and how many by none; from the tokens and columns of each of their weights."""
    experts: dict[str, list[str]] = {}
    for name in met:
        experts.setdefault(name.partition(".")[2], []).append(name)
    return {
        "experts": len(experts),
        "few_tokens": sum(
            any(met[n] < FEW * widths[n] for n in several) for several in experts.values()
        ),
        "no_tokens": sum(not any(met[n] for n in several) for several in experts.values()),
    }


def write(path: Path, found: Mapping[str, int]) -> None:
    """Write what `of_all` adds up."""
    path.write_text(json.dumps(found), encoding="utf-8")


def of_all(folder: Path) -> dict[str, int]:
    """The numbers of `few` over all blocks of a calibration."""
    total: dict[str, int] = {}
    for path in folder.glob(f"*/{ABOUT}"):
        found: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
        total = {key: total.get(key, 0) + value for key, value in found.items()}
    return total
