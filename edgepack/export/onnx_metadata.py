"""Facts about a model that a graph's initializers do not tell. They are in the graph's
metadata_props, so that the folder can be read back as a checkpoint (`onnx_checkpoint`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

from edgepack.checkpoint import Checkpoint
from edgepack.checkpoint._layout import SHAPES
from edgepack.checkpoint.config import Width
from edgepack.core.untrusted import Untrusted, parse_json, quote, validate
from edgepack.core.weights import WeightFormat
from edgepack.errors import CheckpointError

KEY = "edgepack"
"""The entry of metadata_props, a JSON text."""
AGAIN = "build the folder again with this version of edgepack"

SHORTCUTS = ("attn_shortcut", "ffn_shortcut")
"""Roles of matrices that only models sliced per block have."""


def _known_role(role: str) -> str:
    if role not in (*SHAPES, *SHORTCUTS):
        raise ValueError(f"{quote(role)} is no part of a decoder")
    return role


Role = Annotated[str, AfterValidator(_known_role)]
Name = Annotated[str, Field(min_length=1, max_length=1000)]
Rank = Annotated[int, Field(ge=0, le=1 << 24)]


class Matrix(Untrusted):
    """Shape ``[out, in]`` of a weight, and the formats of its parts (see `WeightFormat`)."""

    shape: Annotated[list[Width], Field(min_length=2, max_length=2)]
    Q: Name
    rank: Rank = 0
    L: Name | None = None
    R: Name | None = None

    @property
    def formats(self) -> WeightFormat:
        """The formats."""
        return WeightFormat(self.Q, self.rank, self.L, self.R)


class Metadata(Untrusted):
    """The hidden size (config.json has the total width of the heads instead), the names of weights
    inside a block and outside by their roles, and every matrix by its Hugging Face name."""

    hidden_size: Width
    block: dict[Role, Name]
    outside: dict[Role, Name]
    matrices: Annotated[dict[str, Matrix], Field(max_length=1_000_000)]


def describe(checkpoint: Checkpoint, parts: Mapping[str, WeightFormat]) -> str:
    """The metadata of a model whose matrices have the formats `parts`."""
    family, specs = checkpoint.architecture, checkpoint.specs
    inside = {**family.block, **family.optional}
    roles = {spec.role for spec in specs.values() if spec.block is not None}
    matrices = {}
    for name, fmt in parts.items():
        stored = {key: value for key, value in vars(fmt).items() if value and key != "exact"}
        matrices[name] = {"shape": list(specs[name].shape), **stored}
    about = {
        "hidden_size": checkpoint.dimensions.hidden_size,
        "block": {role: name for role, name in inside.items() if role in roles},
        "outside": dict(family.outside),
        "matrices": matrices,
    }
    return json.dumps(about, separators=(",", ":"))


def read(text: str, place: str) -> Metadata:
    """Inverse of `describe`."""
    where = f"{place}: metadata"
    content = parse_json(text, where, CheckpointError)
    return validate(Metadata, content, where, CheckpointError, hint=AGAIN)
