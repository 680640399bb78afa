"""A PEFT folder read as an adapter, whoever wrote it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgepack.adapters.adapter import Lora
from edgepack.core.untrusted import Untrusted, quote, read_json, shorten, validate
from edgepack.errors import EdgepackError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PARTS = {".lora_A.weight": "lora_A", ".lora_B.weight": "lora_B"}
UNREADABLE = {
    "embed_tokens.": "changes embeddings",
    "lora_embedding_A": "changes embeddings",
    "lora_embedding_B": "changes embeddings",
    "lora_magnitude_vector": "is a DoRA adapter",
    ".lora_B.bias": "has biases of lora_B",
}
"""Part of a tensor's name → what that says of the adapter."""
OTHER_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Starts of PEFT's initialisers that change the base's weights."""
PLAIN = (
    "train a plain LoRA of the linear layers, or merge this one into the model before packing it"
)

_Number = Annotated[float, Field(gt=0, le=1e9)]
_Rank = Annotated[int, Field(ge=1, le=1 << 20)]
_Patterns = Annotated[dict[str, _Number], Field(max_length=100_000)]


class Config(Untrusted):
    """The fields of adapter_config.json that are read."""

    peft_type: str
    r: _Rank
    lora_alpha: _Number = 8
    alpha_pattern: _Patterns | None = None
    use_rslora: bool | None = False
    use_dora: bool | None = False
    bias: str | None = "none"
    modules_to_save: list[str] | None = None
    init_lora_weights: Any = True
    layer_replication: Any = None
    target_parameters: list[str] | None = None

    def unreadable(self) -> str | None:
        """What cannot be carried over to a packed model, if anything."""
        init = str(self.init_lora_weights)
        found = {
            f"is of type {quote(self.peft_type)}": self.peft_type != "LORA",
            "is a DoRA adapter": self.use_dora,
            f"trains biases ({quote(self.bias)})": self.bias not in (None, "none"),
            f"replaces whole modules ({quote(', '.join(self.modules_to_save or ()))})": bool(
                self.modules_to_save
            ),
            f"was initialised with {quote(init)}, which changes the base": init.startswith(
                OTHER_BASE
            ),
            "repeats layers (layer_replication)": bool(self.layer_replication),
            "changes parameters that are no linear layers (target_parameters)": bool(
                self.target_parameters
            ),
        }
        return next((what for what, holds in found.items() if holds), None)

    def scale(self, module: str, rank: int) -> float:
        """PEFT's scale of a module: alpha / rank, or alpha / √rank with rslora."""
        key = _matching(self.alpha_pattern or {}, module)
        alpha = self.lora_alpha if key is None else (self.alpha_pattern or {})[key]
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read(
    folder: Path, matrices: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, Lora], Mapping[str, str]]:
    """Pairs by weight, and the texts in the safetensors' metadata. `matrices` are the weights that
    an adapter may change, with their shapes."""
    place = shorten(str(folder), 120)
    config = _config(folder, place)
    tensors, metadata = _tensors(folder / WEIGHTS, f"{place}/{WEIGHTS}")
    halves: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        module, part = _place(key, place)
        halves.setdefault(module, {})[part] = value
    return {
        f"{module}.weight": _lora(module, parts, config, matrices, place)
        for module, parts in halves.items()
    }, metadata


def _lora(
    module: str,
    parts: Mapping[str, Tensor],
    config: Config,
    matrices: Mapping[str, tuple[int, int]],
    place: str,
) -> Lora:
    """A module's pair with PEFT's scale in it, checked against the weight that it changes."""
    shape, shown = matrices.get(f"{module}.weight"), shorten(module, 80)
    if shape is None:
        raise _foreign(f"{place}: {shown} is no matrix of this model")
    if set(parts) != set(PARTS.values()):
        raise _foreign(f"{place}: {shown} has only {', '.join(sorted(parts))}")
    A, B = parts["lora_A"], parts["lora_B"]
    rank = A.shape[0] if A.dim() == 2 else 0
    if not rank or A.shape != (rank, shape[1]) or B.shape != (shape[0], rank):
        shapes = f"{list(B.shape)} · {list(A.shape)} for {list(shape)}"
        raise _foreign(f"{place}: {shown} does not fit ({shapes})")
    return Lora(A, B).scaled_evenly(config.scale(module, rank))


def _config(folder: Path, place: str) -> Config:
    where = f"{place}/{CONFIG}"
    try:
        content = read_json(folder / CONFIG, place=where)
    except OSError as error:
        raise EdgepackError(f"{where}: cannot be read ({error.strerror})") from None
    config = validate(Config, content, where, hint="copy the adapter again")
    if what := config.unreadable():
        raise EdgepackError(f"{place}: {what}", hint=PLAIN)
    return config


def _tensors(path: Path, where: str) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """All tensors as float32."""
    if not path.is_file():
        raise EdgepackError(
            f"{where}: is not there", hint="save the adapter with safe_serialization=True"
        )
    try:
        with safe_open(path, "pt") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        reason = shorten(str(error).splitlines()[0] if str(error) else "damaged", 120)
        raise EdgepackError(
            f"{where}: cannot be read ({reason})", hint="copy the adapter again"
        ) from None
    for key, value in found.items():
        if not value.is_floating_point() or not torch.isfinite(value).all():
            raise EdgepackError(
                f"{where}: {shorten(key, 80)} holds no finite numbers", hint="train it again"
            )
    return {key: value.float() for key, value in found.items()}, metadata


def _place(key: str, place: str) -> tuple[str, str]:
    """Module and part of a tensor."""
    for name, what in UNREADABLE.items():
        if name in key:
            raise EdgepackError(f"{place}: it {what} ({shorten(key, 80)})", hint=PLAIN)
    for suffix, part in PARTS.items():
        if key.startswith(PREFIX) and key.endswith(suffix):
            return key.removeprefix(PREFIX).removesuffix(suffix), part
    raise EdgepackError(
        f"{place}: it holds {shorten(key, 80)}, which is no LoRA pair of a linear layer", hint=PLAIN
    )


def _matching(patterns: Iterable[str], module: str) -> str | None:
    """The first pattern that PEFT would find for a module: a regular expression for the end of its
    name, at a dot. Those that could take forever to match are refused."""
    for pattern in patterns:
        plain = pattern.replace("\\.", ".").removeprefix("^")
        if re.fullmatch(r"[\w.-]*", plain):
            ends = module == plain or (module.endswith("." + plain) and pattern[:1] != "^")
            if ends:
                return pattern
            continue
        if len(pattern) > 200 or re.search(r"\)[*+{?]", pattern) or _repeats(pattern) > 3:
            raise EdgepackError(
                f"{CONFIG}: alpha_pattern {quote(pattern)} is too complicated",
                hint="name the modules instead",
            )
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return pattern
        except (re.error, OverflowError):
            raise EdgepackError(
                f"{CONFIG}: alpha_pattern {quote(pattern)} is no regular expression",
                hint="name the modules instead",
            ) from None
    return None


def _repeats(pattern: str) -> int:
    return len(re.findall(r"[*+{]", pattern))


def _foreign(message: str) -> EdgepackError:
    return EdgepackError(message, hint="the adapter was made for another model")
