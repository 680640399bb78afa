"""Families that graphs compute, by the facts that `onnx_decoder` does not know yet."""

from __future__ import annotations

from edgepack.architectures.base import BEHIND, Architecture


def why_not(family: Architecture) -> str | None:
    """What of a family a graph would leave out, so that it would compute something else; None if
    it computes all of it."""
    roles = {**family.block, **family.optional}
    missing = {
        "norms behind attention and MLP": bool(set(BEHIND.values()) & set(roles)),
        "fused weights": "attn_qkv" in roles,
        "factors and caps": bool(family.numbers),
        "kinds of blocks": family.mixed,
        "norms behind the rotation": family.head_norms_last,
        "rotation of neighbours": family.neighbours,
    }
    names = [name for name, there in missing.items() if there]
    return f"graphs have no {', '.join(names)}, as {family.name} models have" if names else None
