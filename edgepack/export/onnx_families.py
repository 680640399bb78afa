"""Families that graphs compute, by the facts that `onnx_decoder` does not know yet."""

from __future__ import annotations

from edgepack.architectures.base import Architecture


def why_not(family: Architecture) -> str | None:
    """Why a graph cannot compute a family's models; None if it can."""
    if family.router is not None:
        return f"{family.name} models have experts, which graphs do not have"
    if not family.kind_roles:
        return None
    kinds = ", ".join(family.kind_roles)
    return f"{family.name} models have blocks of several kinds ({kinds}), which graphs do not have"
