"""Rotary positions: Hugging Face's configuration, and its form in GGUF."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from edgepack.architectures.base import Architecture
from edgepack.core.untrusted import Untrusted, quote
from edgepack.errors import CheckpointError

TENSOR = "rope_freqs.weight"
"""GGUF's tensor of frequency divisors."""

Theta = Annotated[float, Field(gt=0, le=1e30)]
Factor = Annotated[float, Field(gt=0, le=1e9)]
Share = Annotated[float, Field(gt=0, le=1)]
Positions = Annotated[int, Field(ge=1, le=(1 << 31) - 1)]


class Parameters(Untrusted):
    """``rope_parameters`` of transformers 5, or ``rope_scaling`` of transformers 4."""

    model_config = ConfigDict(extra="allow")

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Theta | None = None
    partial_rotary_factor: Share | None = None
    factor: Factor | None = None
    low_freq_factor: Factor | None = None
    high_freq_factor: Factor | None = None
    original_max_position_embeddings: Annotated[int, Field(ge=1, le=1 << 31)] | None = None


class Rotary(Untrusted):
    """The entries of config.json about rotary positions."""

    max_position_embeddings: Positions
    rope_theta: Theta | None = 10000.0
    rope_parameters: Parameters | None = None
    rope_scaling: Parameters | None = None
    partial_rotary_factor: Share | None = None
    original_max_position_embeddings: Positions | None = None


SUPPORTED = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
"""``rope_type`` → its parameters."""

LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Values of every published Llama 3; only `factor` varies (8 in 3.1, 32 in 3.2)."""

HINT = "supported: " + ", ".join(SUPPORTED)


def from_config(
    config: Rotary, architecture: Architecture, place: str
) -> tuple[float, dict[str, Any] | None, float]:
    """(theta, scaling, rotated share of a head) of a config.json, resolved as in transformers:
    ``rope_scaling`` before ``rope_parameters``, and keys in either before keys outside them."""
    place = f"{place}: config.json"
    given = _chosen(config)
    inside = given.model_fields_set
    others = given.model_extra or {}
    if nested := [key for key, value in others.items() if isinstance(value, dict)]:
        raise CheckpointError(
            f"{place}: rotary positions that differ by kind of layer ({quote(nested[0])}) are not "
            "supported",
            hint="edgepack reads models whose layers all turn alike",
        )
    theta = given.rope_theta if "rope_theta" in inside else config.rope_theta
    kind = given.rope_type if "rope_type" in inside else given.type or "default"
    if theta is None:
        raise CheckpointError(f"{place}: rope_theta is null", hint="10000 is the usual value")
    if kind not in SUPPORTED:
        raise CheckpointError(f"{place}: rope type {quote(kind)} is not supported", hint=HINT)
    share = _share(config, given, architecture)
    if share != 1.0 and not architecture.partial_rotary:
        raise CheckpointError(
            f"{place}: a partial rotary factor is not supported", hint="whole heads have to turn"
        )
    return theta, _scaling(kind, config, given, place), share


def _chosen(config: Rotary) -> Parameters:
    """The parameters that transformers uses; it ignores an empty mapping."""
    for given in (config.rope_scaling, config.rope_parameters):
        if given is not None and (given.model_fields_set or given.model_extra):
            return given
    return Parameters()


def _share(config: Rotary, given: Parameters, architecture: Architecture) -> float:
    """The share of a head that is rotated by the position."""
    for place in (given, config):
        if "partial_rotary_factor" in place.model_fields_set:
            return place.partial_rotary_factor or 1.0
    return architecture.usual_partial_rotary


def _scaling(kind: str, config: Rotary, given: Parameters, place: str) -> dict[str, Any] | None:
    """The parameters of a kind of scaling, None for none."""
    values = {key: getattr(given, key) for key in SUPPORTED[kind]}
    if kind == "llama3":
        length = "original_max_position_embeddings"
        outside = config.original_max_position_embeddings
        values[length] = outside or values[length] or config.max_position_embeddings
    missing = [key for key, value in values.items() if value is None]
    if missing:
        raise CheckpointError(
            f"{place}: rope type {kind!r} without {missing[0]}",
            hint="config.json is incomplete; take the one published with the model",
        )
    if kind == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
        raise CheckpointError(
            f"{place}: high_freq_factor is not above low_freq_factor",
            hint="take the config.json published with the model",
        )
    return {"rope_type": kind} | values if values else None


def from_gguf(
    kind: str,
    factor: float,
    divisors: Tensor | None,
    theta: float,
    head_dim: int,
    place: str,
) -> dict[str, Any] | None:
    """The scaling of a GGUF, None for none.

    The file does not hold Llama 3's parameters, only the divisors computed from them. They are
    recognised by computing them again.
    """
    if kind not in ("linear", "none"):
        raise CheckpointError(f"{place}: rope scaling {quote(kind)} is not supported", hint=HINT)
    if divisors is not None:
        largest = float(divisors.max())
        scaling = {"rope_type": "llama3", "factor": largest} | LLAMA3
        again = llama3_divisors(theta, head_dim, scaling) if largest > 0 else divisors[:0]
        if again.shape != divisors.shape or not torch.allclose(again, divisors, rtol=1e-5):
            raise CheckpointError(f"{place}: {TENSOR} is not Llama 3's rotary scaling", hint=HINT)
        return scaling
    return {"rope_type": "linear", "factor": factor} if kind == "linear" and factor != 1 else None


def llama3_divisors(theta: float, head_dim: int, scaling: Mapping[str, Any]) -> Tensor:
    """Float32 ``[head_dim / 2]``: 1 for short waves, `factor` for long, a ramp in between."""
    wave = 2 * math.pi * theta ** (torch.arange(0, head_dim, 2).double() / head_dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] / wave
    ramp = ((turns - low) / (high - low)).clamp(0, 1)
    divisors: Tensor = 1 / ((1 - ramp) / scaling["factor"] + ramp)
    return divisors.float()
