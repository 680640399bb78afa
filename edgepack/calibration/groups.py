"""Which weights of a block have their moments in memory together.

Moments are sums over all tokens, weight by weight. If those of a block do not fit, the block is
passed several times, for a group of its weights each. No byte depends on the groups.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from edgepack.architectures.base import LINEAR_ROLES
from edgepack.calibration.experts import stacks
from edgepack.calibration.gram import gram_bytes
from edgepack.calibration.items import Stack
from edgepack.core.parts import stem
from edgepack.model.stream import Run

Shapes = Mapping[str, tuple[int, ...]]
"""Role → (out, in)."""


def stacks_of(roles: Collection[str]) -> list[Stack]:
    """The weights of a block that are calibrated, experts of one role together; in order."""
    together = [tuple(stack) for stack in stacks(roles)]
    of_experts = {name for stack in together for name in stack}
    alone = [(role,) for role in roles if role in LINEAR_ROLES and role not in of_experts]
    return sorted([*alone, *together], key=lambda stack: LINEAR_ROLES.index(stem(stack[0])))


def moment_bytes(stack: Stack, shapes: Shapes, runs: Sequence[Run], *, output_side: bool) -> int:
    """Most bytes of memory that the moments of a stack take: the sums over runs that are done, and
    those of the run at hand."""
    train = sum(not run.held_out for run in runs)
    copies = max(min(train, 2), 1 + min(len(runs) - train, 2))
    sides = slice(0, 2) if output_side else slice(1, 2)
    each = [sum(map(gram_bytes, shapes[role][sides])) for role in stack]
    drawn = max(each) if len(stack) > 1 else 0  # the mean of all experts
    return copies * sum(each) + drawn


def pass_bytes(
    stack: Stack,
    shapes: Shapes,
    runs: Sequence[Run],
    *,
    output_side: bool,
    tokens: int,
    used: int,
) -> int:
    """Those of a pass that collects the moments of a stack: with the inputs and gradients of a
    batch of `tokens`, of which each meets `used` experts. Inputs are there twice while they are
    put together."""
    out, columns = (max(shapes[role][side] for role in stack) for side in (0, 1))
    times = used if len(stack) > 1 else 1
    moments = moment_bytes(stack, shapes, runs, output_side=output_side)
    return moments + 4 * tokens * times * (out + 2 * columns)


def groups(
    stacks: Sequence[Stack], size: Callable[[Stack], int], room: int | None
) -> list[tuple[Stack, ...]]:
    """The stacks in groups whose sizes add up to at most `room`, a stack that is larger by itself.
    Few groups: the largest stacks are placed first."""
    if room is None:
        return [tuple(stacks)] if stacks else []
    found: list[tuple[int, list[Stack]]] = []
    for stack in sorted(stacks, key=size, reverse=True):
        for index, (taken, members) in enumerate(found):
            if taken + size(stack) <= room:
                found[index] = (taken + size(stack), [*members, stack])
                break
        else:
            found.append((size(stack), [stack]))
    return [tuple(sorted(members, key=stacks.index)) for _, members in found]
