"""The oldest ONNX Runtime that runs a graph, and the part of the graph that needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from onnx import NodeProto

Version = tuple[int, int]


class HasNodes(Protocol):
    """A graph."""

    @property
    def nodes(self) -> Iterable[NodeProto]: ...  # noqa: D102


class Need(NamedTuple):
    """A use of an operator that is supported since a version."""

    since: Version
    what: str
    op: str
    is_used: Callable[[NodeProto], bool] = lambda node: True
    half: bool = False
    """Whether it is needed only if the graph computes in float16."""


def _has_bits(bits: int) -> Callable[[NodeProto], bool]:
    def is_used(node: NodeProto) -> bool:
        return any(a.name == "bits" and a.i == bits for a in node.attribute)

    return is_used


def _has(name: str) -> Callable[[NodeProto], bool]:
    def is_used(node: NodeProto) -> bool:
        return any(a.name == name for a in node.attribute)

    return is_used


NEEDS = (
    Need((1, 19), "attention with grouped queries", "GroupQueryAttention"),
    Need((1, 20), "soft caps of attention", "GroupQueryAttention", _has("softcap")),
    Need((1, 20), "activations in float16", "GroupQueryAttention", half=True),
    Need((1, 22), "rows padded on the left", "GroupQueryAttention", lambda n: len(n.input) > 9),
    Need((1, 22), "products with 8 bits", "MatMulNBits", _has_bits(8)),
    Need((1, 23), "lookups in packed embeddings", "GatherBlockQuantized"),
    Need((1, 24), "products with 2 bits", "MatMulNBits", _has_bits(2)),
    Need((1, 27), "lookups in 2-bit embeddings", "GatherBlockQuantized", _has_bits(2)),
    Need((1, 28), "products with 2 bits in float16", "MatMulNBits", _has_bits(2), half=True),
)
"""Found by loading graphs in every version (tests/export/test_onnx_versions.py)."""


def oldest_version(graph: HasNodes, *, half: bool) -> tuple[Version, str]:
    """The oldest version, and the part that needs it; `half`: the graph computes in float16."""
    asked = [need for need in NEEDS if half or not need.half]
    met = (need for n in graph.nodes for need in asked if n.op_type == need.op and need.is_used(n))
    newest = max(met, key=lambda need: need.since)
    return newest.since, newest.what
