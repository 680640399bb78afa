"""Experts as keys of a GGUF, and as parts of its stacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gguf import ExpertGatingFuncType, GGUFWriter

from edgepack.architectures.base import Architecture
from edgepack.checkpoint.base import Dimensions
from edgepack.checkpoint.config import EXPERTS, check_experts
from edgepack.checkpoint.gguf_keys import Numbers
from edgepack.errors import CheckpointError

GATING = {
    "softmax": ExpertGatingFuncType.SOFTMAX,
    "sigmoid": ExpertGatingFuncType.SIGMOID,
}


def write(writer: GGUFWriter, family: Architecture, d: Dimensions) -> None:
    """Add the keys of a model with experts."""
    if family.router is None:
        return
    writer.add_expert_count(d.num_experts)
    writer.add_expert_used_count(d.num_experts_per_tok)
    writer.add_expert_feed_forward_length(d.moe_intermediate_size)
    if family.router.dense:
        writer.add_leading_dense_block_count(d.num_dense_layers)
        writer.add_expert_gating_func(GATING[family.router.scores])


def read(family: Architecture, numbers: Numbers, place: str) -> dict[str, Any]:
    """Our dimensions that are about experts."""
    if family.router is None:
        if numbers.expert_count:
            raise CheckpointError(
                f"{place}: {family.gguf}.expert_count {numbers.expert_count} is not supported",
                hint=f"{family.gguf} models are read without experts",
            )
        return {}
    wanted = GATING[family.router.scores]
    if numbers.gating not in (None, wanted):
        raise CheckpointError(
            f"{place}: {family.gguf}.expert_gating_func {numbers.gating} is not supported",
            hint=f"{family.gguf} models are computed with {wanted.value} ({wanted.name.lower()})",
        )
    used = numbers.expert_used_count
    length = numbers.expert_length or numbers.feed_forward_length // max(used, 1)
    sizes = (numbers.expert_count, used, length, numbers.dense_blocks)
    found = dict(zip(EXPERTS, sizes, strict=True))
    check_experts(found, f"{place}: {family.gguf}")
    return found


class Part(NamedTuple):
    """A stored tensor, and the part of it that one expert has; None: all of it is meant."""

    tensor: str
    expert: int | None = None


def parts(
    shapes: Mapping[str, tuple[int, ...]], family: Architecture, d: Dimensions
) -> dict[str, Part]:
    """Every tensor by its name, and in place of a stack of experts its parts, by the names of
    `Architecture.gguf_name`."""
    found = {name: Part(name) for name in shapes}
    roles = family.router.routed if family.router else ()
    for block in range(d.num_hidden_layers):
        for role in filter(family.is_stack, roles):
            stack = family.gguf_name(role, block)
            if stack in found and shapes[stack][:1] == (d.num_experts,):
                del found[stack]
                for expert in range(d.num_experts):
                    found[family.gguf_name(role, block, expert)] = Part(stack, expert)
    return found
