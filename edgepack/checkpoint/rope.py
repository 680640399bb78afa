"""Rotary positions: Hugging Face's configuration, and its form in GGUF."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from edgepack.architectures.base import FULL, Architecture
from edgepack.checkpoint import completed
from edgepack.checkpoint.base import Dimensions
from edgepack.core.untrusted import Untrusted, quote, validate
from edgepack.errors import CheckpointError

TENSOR = "rope_freqs.weight"
"""GGUF's tensor of frequency divisors."""
LONGROPE = {
    "rope_factors_long.weight": "long_factor",
    "rope_factors_short.weight": "short_factor",
}
"""GGUF's tensors of LongRoPE's divisors, beyond and up to the original context."""

NEVER = float(torch.tensor(1e30))
"""A divisor by which llama.cpp's converter stops pairs from turning."""

Theta = Annotated[float, Field(gt=0, le=1e30)]
Factor = Annotated[float, Field(gt=0, le=1e9)]
Share = Annotated[float, Field(gt=0, le=1)]
Divisors = Annotated[list[Factor], Field(min_length=1, max_length=1 << 16)]
Positions = Annotated[int, Field(ge=1, le=(1 << 31) - 1)]


class Parameters(Untrusted):
    """``rope_parameters`` of transformers 5, or ``rope_scaling`` of transformers 4."""

    model_config = ConfigDict(extra="allow")

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Theta | None = None
    partial_rotary_factor: Share | None = None
    factor: Factor | None = None
    alpha: Factor | None = None
    low_freq_factor: Factor | None = None
    high_freq_factor: Factor | None = None
    original_max_position_embeddings: Annotated[int, Field(ge=1, le=1 << 31)] | None = None
    beta_fast: Factor | None = None
    beta_slow: Factor | None = None
    mscale: Annotated[float, Field(ge=0, le=1e9)] | None = None
    mscale_all_dim: Annotated[float, Field(ge=0, le=1e9)] | None = None
    attention_factor: Factor | None = None
    truncate: bool = True
    short_factor: Divisors | None = None
    long_factor: Divisors | None = None
    llama_4_scaling_beta: Annotated[float, Field(ge=0, le=1e9)] | None = None
    mrope_section: Annotated[list[int], Field(min_length=1, max_length=4)] | None = None


class Rotary(Untrusted):
    """The entries of config.json about rotary positions."""

    max_position_embeddings: Positions
    rope_theta: Theta | None = 10000.0
    rope_parameters: Parameters | None = None
    rope_scaling: Parameters | None = None
    partial_rotary_factor: Share | None = None
    original_max_position_embeddings: Positions | None = None


SUPPORTED: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
    "proportional": ("partial_rotary_factor",),
}
"""``rope_type`` → the parameters that it cannot do without."""

LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Values of every published Llama 3; only `factor` varies (8 in 3.1, 32 in 3.2)."""

HINT = "supported: " + ", ".join(SUPPORTED)


def from_config(
    config: Rotary, architecture: Architecture, head_dim: int, place: str
) -> dict[str, dict[str, Any]]:
    """Our dimensions ``rope_theta``, ``rope_scaling`` and ``partial_rotary_factor`` by kind of
    block, ``full_attention`` always among them. Resolved as in transformers: ``rope_scaling``
    before ``rope_parameters``, and keys in either before keys outside them."""
    place = f"{place}: config.json"
    given = _chosen(config)
    nested = {k: v for k, v in (given.model_extra or {}).items() if isinstance(v, dict)}
    if nested and not architecture.mixed:
        raise CheckpointError(
            f"{place}: rotary positions that differ by kind of layer ({quote(min(nested))}) are "
            "not supported",
            hint=f"the layers of {architecture.name} models all turn alike",
        )
    if not nested:
        return {FULL: _resolved(config, given, architecture, head_dim, place)}
    where = f"{place}: rope_parameters"
    parts = {
        kind: validate(Parameters, part, where, CheckpointError, hint=completed.HINT)
        for kind, part in nested.items()
    }
    if FULL not in parts:
        raise CheckpointError(f"{where}: {FULL} is missing", hint="take the published config.json")
    return {
        kind: _resolved(config, part, architecture, head_dim, place) for kind, part in parts.items()
    }


def sections(config: Rotary, architecture: Architecture) -> tuple[int, ...]:
    """Our dimension ``rope_sections``: the family's usual ones unless the file has others."""
    given = _chosen(config).mrope_section if architecture.rope_sections else None
    return architecture.rope_sections if given is None else tuple(given)


def _resolved(
    config: Rotary, given: Parameters, architecture: Architecture, head_dim: int, place: str
) -> dict[str, Any]:
    """Our dimensions of one kind of block. "dynamic" with a fixed alpha is another theta."""
    inside = given.model_fields_set
    theta = given.rope_theta if "rope_theta" in inside else config.rope_theta
    kind = given.rope_type if "rope_type" in inside else given.type or "default"
    if theta is None:
        raise CheckpointError(f"{place}: rope_theta is null", hint="10000 is the usual value")
    if kind == "dynamic" and given.alpha:
        theta, kind = theta * given.alpha ** (head_dim / (head_dim - 2)), "default"
    if kind is None or kind not in SUPPORTED:
        raise CheckpointError(f"{place}: rope type {quote(kind)} is not supported", hint=HINT)
    share = 1.0 if kind == "proportional" else _share(config, given, architecture)
    if share != 1.0 and not architecture.partial_rotary:
        raise CheckpointError(
            f"{place}: a partial rotary factor is not supported", hint="whole heads have to turn"
        )
    return {
        "rope_theta": theta,
        "rope_scaling": _scaling(kind, config, given, place),
        "partial_rotary_factor": share,
    }


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
    values: dict[str, Any] = {key: getattr(given, key) for key in SUPPORTED[kind]}
    length = "original_max_position_embeddings"
    if length in values:
        outside = config.original_max_position_embeddings
        values[length] = outside or values[length] or config.max_position_embeddings
    missing = [key for key, value in values.items() if value is None]
    if missing == ["factor"] and kind == "yarn":
        values["factor"], missing = config.max_position_embeddings / values[length], []
    if missing:
        raise CheckpointError(
            f"{place}: rope type {kind!r} without {missing[0]}",
            hint="config.json is incomplete; take the one published with the model",
        )
    if kind == "proportional" and (given.factor or 1.0) != 1.0:
        raise CheckpointError(
            f"{place}: rope type {kind!r} with factor {given.factor} is not supported",
            hint="published models have none",
        )
    if kind == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
        raise CheckpointError(
            f"{place}: high_freq_factor is not above low_freq_factor",
            hint="take the config.json published with the model",
        )
    more = {"yarn": _yarn, "longrope": _longrope}.get(kind)
    if more is not None:
        values |= more(config, given, values)
    return {"rope_type": kind} | values if values else None


def yarn_growth(factor: float, mscale: float) -> float:
    """By how much cos and sin grow with the factor of YaRN (equation 22, times `mscale`)."""
    return 0.1 * mscale * math.log(max(factor, 1.0)) + 1.0


def _yarn(config: Rotary, given: Parameters, values: Mapping[str, Any]) -> dict[str, Any]:
    """What YaRN leaves to defaults, and the factor of cos and sin (Peng et al., arXiv 2309.00071,
    equation 22; with DeepSeek's ``mscale``)."""
    growth = partial(yarn_growth, values["factor"])
    factor = given.attention_factor
    if factor is None and given.mscale and given.mscale_all_dim:
        factor = growth(given.mscale) / growth(given.mscale_all_dim)
    about = {
        "beta_fast": given.beta_fast or 32.0,
        "beta_slow": given.beta_slow or 1.0,
        "truncate": given.truncate,
        "attention_factor": growth(1.0) if factor is None else factor,
    }
    kept = ("mscale", "mscale_all_dim", "llama_4_scaling_beta")
    own = {key: getattr(given, key) for key in kept}
    return about | {key: value for key, value in own.items() if value is not None}


def _longrope(config: Rotary, given: Parameters, values: Mapping[str, Any]) -> dict[str, Any]:
    """The factor of cos and sin (Ding et al., arXiv 2402.13753, as Phi-3 has it)."""
    original = values["original_max_position_embeddings"]
    stretched = given.factor or config.max_position_embeddings / original
    usual = math.sqrt(1 + math.log(stretched) / math.log(original)) if stretched > 1 else 1.0
    return {"attention_factor": given.attention_factor or usual}


def from_gguf(
    kind: str,
    given: Mapping[str, Any],
    divisors: Mapping[str, Tensor],
    theta: float,
    width: int,
    place: str,
) -> dict[str, Any] | None:
    """The scaling of a GGUF, None for none. `given` are the numbers in its keys, `divisors` its
    tensors of divisors (see `TENSOR` and `LONGROPE`), `width` the columns of a head that turn.

    The file does not hold Llama 3's parameters, only the divisors computed from them. They are
    recognised by computing them again.
    """
    if kind not in ("linear", "none", "yarn", "longrope"):
        raise CheckpointError(f"{place}: rope scaling {quote(kind)} is not supported", hint=HINT)
    length = "original_max_position_embeddings"
    if TENSOR in divisors and float(divisors[TENSOR].max()) == NEVER:
        return _proportional_from(divisors[TENSOR], place)
    if set(LONGROPE) <= set(divisors):
        factors = {key: divisors[name].tolist() for name, key in LONGROPE.items()}
        about = {length: given[length], "attention_factor": given["attention_factor"] or 1.0}
        return {"rope_type": "longrope"} | factors | about
    if TENSOR in divisors:
        return _llama3_from(divisors[TENSOR], theta, width, given, place)
    if kind == "yarn":
        return _yarn_from(given)
    factor = given["factor"]
    return {"rope_type": "linear", "factor": factor} if kind == "linear" and factor != 1 else None


def _proportional_from(divisors: Tensor, place: str) -> dict[str, Any]:
    """The share of pairs that turn: the first ones, whose divisors are 1."""
    turning = int((divisors == 1).sum())
    if not torch.equal(divisors, proportional_divisors(turning, len(divisors))):
        raise CheckpointError(f"{place}: {TENSOR} is no proportional rotary scaling", hint=HINT)
    return {"rope_type": "proportional", "partial_rotary_factor": turning / len(divisors)}


def _llama3_from(
    divisors: Tensor, theta: float, width: int, given: Mapping[str, Any], place: str
) -> dict[str, Any]:
    """Llama 3's scaling, or LongRoPE with the same divisors at every length."""
    largest = float(divisors.max())
    scaling = {"rope_type": "llama3", "factor": largest} | LLAMA3
    again = llama3_divisors(theta, width, scaling) if largest > 0 else divisors[:0]
    if again.shape == divisors.shape and torch.allclose(again, divisors, rtol=1e-5):
        return scaling
    if not bool((divisors > 0).all()) or not bool(torch.isfinite(divisors).all()):
        raise CheckpointError(f"{place}: {TENSOR} has values that are no divisors", hint=HINT)
    values = divisors.tolist()
    return {
        "rope_type": "longrope",
        "short_factor": values,
        "long_factor": values,
        "original_max_position_embeddings": given["original_max_position_embeddings"],
        "attention_factor": 1.0,
    }


def _yarn_from(given: Mapping[str, Any]) -> dict[str, Any]:
    """YaRN as llama.cpp computes it: the factor of cos and sin follows from the others."""
    fields = {key: value for key, value in given.items() if value and key != "attention_factor"}
    if given["mscale_all_dim"]:
        fields["mscale"] = 1.0
    values = {key: given[key] for key in SUPPORTED["yarn"]}
    read = Parameters(**fields)
    config = Rotary(max_position_embeddings=given["original_max_position_embeddings"])
    return {"rope_type": "yarn"} | values | _yarn(config, read, values)


def is_fixed(scaling: Mapping[str, Any]) -> bool:
    """Whether a scaling only divides every frequency, at all lengths, as llama.cpp does it by
    `TENSOR`."""
    if scaling.get("rope_type") != "longrope" or scaling["attention_factor"] != 1.0:
        return False
    return bool(scaling["short_factor"] == scaling["long_factor"])


def extra_tensors(d: Dimensions) -> dict[str, Tensor]:
    """The divisors of rotary frequencies that a GGUF holds as tensors."""
    scaling = d.rope_scaling or {}
    if scaling.get("rope_type") == "llama3":
        return {TENSOR: llama3_divisors(d.rope_theta, d.head_dim, scaling)}
    if scaling.get("rope_type") == "proportional":
        turning = int(scaling["partial_rotary_factor"] * d.head_dim // 2)
        return {TENSOR: proportional_divisors(turning, d.head_dim // 2)}
    if is_fixed(scaling):
        return {TENSOR: torch.tensor(scaling["short_factor"])}
    if scaling.get("rope_type") == "longrope":
        return {name: torch.tensor(scaling[key]) for name, key in LONGROPE.items()}
    return {}


def proportional_divisors(turning: int, pairs: int) -> Tensor:
    """Float32 ``[pairs]``: 1 for those that turn, and what stops the others."""
    return torch.where(torch.arange(pairs) < turning, 1.0, NEVER)


def llama3_divisors(theta: float, head_dim: int, scaling: Mapping[str, Any]) -> Tensor:
    """Float32 ``[head_dim / 2]``: 1 for short waves, `factor` for long, a ramp in between."""
    wave = 2 * math.pi * theta ** (torch.arange(0, head_dim, 2).double() / head_dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] / wave
    ramp = ((turns - low) / (high - low)).clamp(0, 1)
    divisors: Tensor = 1 / ((1 - ramp) / scaling["factor"] + ramp)
    return divisors.float()
