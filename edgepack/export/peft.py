"""The factors as a PEFT adapter, for fine-tuning them on the dequantized base."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from edgepack.core.safetensors_header import sort_texts
from edgepack.core.weights import FactoredWeight
from edgepack.errors import ExportError
from edgepack.export.values import check_finite


def write_adapter(
    folder: Path,
    names: Iterable[str],
    load: Callable[[str], FactoredWeight],
    *,
    base: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Write adapter_config.json and adapter_model.safetensors; return the latter's bytes.

    `names` are the Hugging Face names of the weights with factors. The adapter belongs on the
    dequantized Q, not on the original model; `base` is the path where PEFT finds that. float32
    holds every format's values exactly; float16 halves the file and rounds them.
    """

    def pair(name: str) -> tuple[Tensor, Tensor]:
        weight = load(name)
        if weight.L is None or weight.R is None:
            raise ValueError(f"{name} has no factors")
        return weight.R.dequantize(), weight.L.dequantize()

    return write_pairs(folder, names, pair, base=base, dtype=dtype)


def write_pairs(
    folder: Path,
    names: Iterable[str],
    load: Callable[[str], tuple[Tensor, Tensor]],
    *,
    base: str | None = None,
    dtype: torch.dtype = torch.float32,
    about: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Write what `write_adapter` writes from lora_A ``[rank, in]`` and lora_B ``[out, rank]`` of
    every name, at scale 1; `about` are further texts for the safetensors' metadata."""
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name in names:
        module = name.removesuffix(".weight")
        A, B = load(name)
        ranks[module] = A.shape[0]
        for part, label in ((A, "lora_A"), (B, "lora_B")):
            key = f"base_model.model.{module}.{label}.weight"
            tensors[key] = part.to(dtype).contiguous()
            check_finite(key, tensors[key])
    if not ranks:
        raise ExportError("there are no factors to make an adapter of")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "adapter_model.safetensors"
    try:
        save_file(tensors, path, metadata={"format": "pt", **about})
        sort_texts(path)
        (folder / "adapter_config.json").write_text(json.dumps(config(ranks, base), indent=2))
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) != errno.ENOSPC and "No space" not in str(error):
            raise
        needed = sum(tensor.nbytes for tensor in tensors.values())
        raise ExportError(
            f"no space left for {path}", hint=f"free {needed / 1e6:.0f} MB and run it again"
        ) from error
    return path.stat().st_size


def config(ranks: dict[str, int], base: str | None) -> dict[str, object]:
    """PEFT's LoraConfig for modules of those ranks, all at scale alpha / rank = 1."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": max(ranks.values()),
        "lora_alpha": max(ranks.values()),
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(ranks),
    }
