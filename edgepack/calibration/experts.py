"""Second moments of experts, of which many see few tokens.

An expert's mean H_e over its n_e tokens is drawn towards the mean H̄ over the tokens of all experts
of the block: (n_e·H_e + m·H̄) / (n_e + m), with m = one token for each column. An expert that no
token meets gets H̄. The mean counts n_e + 1 of the calibration's tokens, so that the errors of an
expert that is seldom met weigh little, and those of no expert nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from torch import Tensor

from edgepack.architectures.base import LINEAR_ROLES
from edgepack.calibration.moments import OUT, Moments
from edgepack.core.parts import stem

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
    """Draw the moments of a block's experts towards their mean, in place; `names` are the weights
    of the block, those that no token met included."""
    for stack in stacks(names):
        for held_out in (False, True):
            counts = [moments.met.get((name, held_out), 0) for name in stack]
            if not sum(counts):
                continue  # `Moments.hessians` says that there are no tokens
            for sums, keys in _sums(moments, stack, held_out=held_out):
                _draw(sums, keys, counts)


def _sums(
    moments: Moments, stack: list[str], *, held_out: bool
) -> Iterator[tuple[dict[object, Tensor], list[object]]]:
    """The dictionaries of sums, and the keys of a stack's weights in them."""
    every: dict[object, Tensor] = moments.sums  # type: ignore[assignment]
    for suffix in ("", OUT):
        keys: list[object] = [(name + suffix, held_out) for name in stack]
        if any(key in every for key in keys):
            yield every, keys
    if not held_out:
        yield moments.squares, list(stack)  # type: ignore[misc]


def _draw(sums: dict[object, Tensor], keys: list[object], counts: list[int]) -> None:
    there = [sums[key] for key in keys if key in sums]
    total = there[0].clone()
    for value in there[1:]:
        total += value
    mean = total / sum(counts)
    prior = mean.shape[-1]
    for key, count in zip(keys, counts, strict=True):
        drawn = prior * mean
        if key in sums:
            drawn += sums[key]
        sums[key] = drawn * ((count + 1) / (count + prior))


def few(moments: Moments, names: Collection[str]) -> dict[str, int]:
    """How many of a block's experts there are, how many were met by fewer than `FEW` tokens a
    column, and how many by none."""
    weights = [name for stack in stacks(names) for name in stack]
    if not weights:
        return {}
    widths = {name: len(moments.squares[name]) for name in weights}
    met = {name: moments.met.get((name, False), 0) for name in weights}
    widest: dict[str, list[str]] = {}
    for name in weights:
        widest.setdefault(name.partition(".")[2], []).append(name)
    return {
        "experts": len(widest),
        "few_tokens": sum(
            any(met[n] < FEW * widths[n] for n in several) for several in widest.values()
        ),
        "no_tokens": sum(not any(met[n] for n in several) for several in widest.values()),
    }


def summed(blocks: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The numbers of `few` over all blocks."""
    total: dict[str, int] = {}
    for found in blocks:
        total = {key: total.get(key, 0) + value for key, value in found.items()}
    return total
