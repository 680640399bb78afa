"""A PEFT folder read as an adapter, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgepack.adapters.adapter import Lora
from edgepack.checkpoint.peft import CONFIG, OTHER_BASE, PREFIX, WEIGHTS, PeftConfig
from edgepack.core.untrusted import NOT_OPENED, quote, read_json, shorten, validate
from edgepack.errors import EdgepackError

PARTS = {".lora_A.weight": "lora_A", ".lora_B.weight": "lora_B"}
UNREADABLE = {
    "embed_tokens.": "changes embeddings",
    "lora_embedding_A": "changes embeddings",
    "lora_embedding_B": "changes embeddings",
    "lora_magnitude_vector": "is a DoRA adapter",
    ".lora_B.bias": "has biases of lora_B",
}
"""Part of a tensor's name → what that says of the adapter."""
PLAIN = (
    "train a plain LoRA of the linear layers, or merge this one into the model before packing it"
)


class Config(PeftConfig):
    """The fields of adapter_config.json that are read."""

    bias: str | None = "none"
    modules_to_save: list[str] | None = None
    init_lora_weights: Any = True
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
        raise EdgepackError(
            f"{where}: cannot be read ({error.strerror})", hint=NOT_OPENED
        ) from None
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


def _foreign(message: str) -> EdgepackError:
    return EdgepackError(message, hint="the adapter was made for another model")
