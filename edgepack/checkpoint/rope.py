"""Rotary scaling: what Hugging Face configures, and how GGUF stores it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edgepack.errors import CheckpointError

TENSOR = "rope_freqs.weight"
"""GGUF's tensor of frequency divisors."""

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
"""What every published Llama 3 has; only `factor` varies (8 in 3.1, 32 in 3.2)."""

HINT = "supported: " + ", ".join(SUPPORTED)


def share(config: Mapping[str, Any]) -> float:
    """How much of a head turns with the position."""
    parameters = config.get("rope_parameters") or {}
    return float(parameters.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)))


def of_config(
    config: Mapping[str, Any], place: str, *, partial: bool = False
) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling) of a config.json, as transformers 4 or 5 writes it; `partial` says whether
    the family may have a partial rotary factor."""
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = parameters.get("rope_theta", config.get("rope_theta", 10000.0))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in SUPPORTED or (share(config) != 1.0 and not partial):
        what = f"rope type {kind!r}" if kind not in SUPPORTED else "a partial rotary factor"
        raise CheckpointError(f"{place}: {what} is not supported", hint=HINT)
    missing = [key for key in SUPPORTED[kind] if key not in parameters]
    if missing:
        raise CheckpointError(
            f"{place}: rope type {kind!r} without {missing[0]}",
            hint="config.json is incomplete; take the one published with the model",
        )
    values = {key: parameters[key] for key in SUPPORTED[kind]}
    return float(theta), {"rope_type": kind} | values if values else None


def of_gguf(
    fields: Mapping[str, Any], divisors: Tensor | None, theta: float, head_dim: int, place: str
) -> dict[str, Any] | None:
    """The scaling of a GGUF (keys without the architecture's prefix), None for none.

    Llama 3's parameters are not in the file, only the divisors made from them: they are
    recognised by making them again.
    """
    kind = fields.get("rope.scaling.type", "linear")
    factor = fields.get("rope.scaling.factor", fields.get("rope.scale_linear", 0.0)) or 1.0
    if kind not in ("linear", "none"):
        raise CheckpointError(f"{place}: rope scaling {kind!r} is not supported", hint=HINT)
    if divisors is not None:
        scaling = {"rope_type": "llama3", "factor": float(divisors.max())} | LLAMA3
        again = llama3_divisors(theta, head_dim, scaling)
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
