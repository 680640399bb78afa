"""Write a checkpoint as a Hugging Face folder: config.json, tokenizer, shards of whole blocks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from edgepack.architectures.base import FULL, NO_ROPE, SLIDING, Architecture, Number
from edgepack.checkpoint import sized_kinds, values
from edgepack.checkpoint.base import Checkpoint, Dimensions
from edgepack.checkpoint.config import EXPERTS, bias_switch
from edgepack.core import plugins
from edgepack.core.disk import atomic
from edgepack.core.progress import Progress, Steps
from edgepack.core.weights import WeightSpec

INDEX = "model.safetensors.index.json"
SHARD = 500_000_000
"""Most bytes of a shard, unless one block has more; a shard is in memory while it is written."""
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""Storage type of a weight → type that it is written as; quantized sources become float16."""


def save(
    checkpoint: Checkpoint, load: Callable[[str], Tensor], folder: Path, stage: str
) -> Steps[None]:
    """Write `checkpoint` into `folder`; `load` gives each weight by its name.

    A killed run resumes after its last whole shard.
    """
    shards = _shards(checkpoint)
    weight_map: dict[str, str] = {}
    total = 0
    for number, specs in enumerate(shards, 1):
        path = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        yield Progress(stage, number - 1, len(shards), f"writing {path.name}")
        if not path.exists():
            tensors = {s.name: _as_stored(checkpoint, s, load(s.name)) for s in specs}
            with atomic(path) as temporary:
                save_file(tensors, temporary, metadata={"format": "pt"})
        weight_map |= {spec.name: path.name for spec in specs}
        total += sum(map(_nbytes, specs))
    _write_json(folder / "config.json", config(checkpoint))
    if own := checkpoint.own_code():
        shutil.copyfile(own.file, folder / own.file.name)
    if generation := checkpoint.generation_config():
        _write_json(folder / "generation_config.json", dict(generation))
    checkpoint.tokenizer.save_pretrained(folder)
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _as_stored(checkpoint: Checkpoint, spec: WeightSpec, value: Tensor) -> Tensor:
    """A weight as the family's files have it."""
    family, d = checkpoint.architecture, checkpoint.dimensions
    value = values.to_hf(family, d, spec.role, value)
    return value.to(dtype_of(spec)).contiguous()


def is_saved(folder: Path) -> bool:
    """Whether `save` has finished."""
    return (folder / INDEX).exists()


def _shards(checkpoint: Checkpoint) -> list[list[WeightSpec]]:
    """Weights that share a file: those outside the blocks, then whole blocks up to `SHARD`."""
    groups: dict[int | None, list[WeightSpec]] = {}
    for spec in checkpoint.specs.values():
        groups.setdefault(spec.block, []).append(spec)
    shards: list[list[WeightSpec]] = [groups.pop(None)]
    for specs in groups.values():
        if sum(_nbytes(s) for s in shards[-1] + specs) > SHARD:
            shards.append([])
        shards[-1] += specs
    return shards


def _nbytes(spec: WeightSpec) -> int:
    return spec.numel * dtype_of(spec).itemsize


def shard_of(folder: Path) -> dict[str, str]:
    """The file of each weight in a folder written by `save`."""
    index: dict[str, dict[str, str]] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return index["weight_map"]


def model_bytes(model: Checkpoint) -> int:
    """Bytes of the tensors of a model as they are saved."""
    return sum(spec.numel * dtype_of(spec).itemsize for spec in model.specs.values())


def dtype_of(spec: WeightSpec) -> torch.dtype:
    """The type that a weight is written as."""
    return DTYPES.get(spec.dtype, torch.float16)


def config(checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json of a checkpoint, for transformers 4 and 5."""
    d, family, tokenizer = checkpoint.dimensions, _family(checkpoint), checkpoint.tokenizer
    own, classes = checkpoint.own_code(), family.class_name
    more: dict[str, Any] = {}
    if own is not None:
        classes = own.prefix + classes
        auto_map = {"AutoModelForCausalLM": f"{own.file.stem}.{classes}"}
        more = {"auto_map": auto_map, **own.config}
    largest = max(checkpoint.specs.values(), key=lambda spec: spec.numel)
    optional = {spec.role for spec in checkpoint.specs.values()} & set(family.optional)
    more |= {bias_switch(role): True for role in optional}
    return {
        "architectures": [classes],
        "model_type": family.name,
        **family.required,
        **{family.renamed[key]: getattr(d, key) for key in family.renamed},
        **({key: getattr(d, key) for key in EXPERTS} if family.router else {}),
        "dtype": str(dtype_of(largest)).removeprefix("torch."),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **{key: getattr(d, key) for key in SIZES},
        **_positions(d, family),
        **more,
        **(_kinds(d) if family.mixed else _window(checkpoint, family)),
        **(sized_kinds.to_config(d) if family.sized_kinds else {}),
        **{n.key: _number(d, ours, n) for ours, n in family.numbers.items() if n.rule != "root"},
    }


SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
)
"""Dimensions that config.json has under our names."""


def _number(d: Dimensions, ours: str, number: Number) -> float | None:
    """A factor or soft cap as config.json has it."""
    value = d.score_scale if ours == "attention_scale" else getattr(d, ours)
    if value is None:
        return None
    written = number.written(value)
    return round(written) if number.rule == "inverse square" else written


def _positions(d: Dimensions, family: Architecture) -> dict[str, Any]:
    """The entries about rotary positions; in the form of transformers 5 too where 4 may read its
    own keys in another way."""
    if "position_embd" in family.outside:
        return {}
    found: dict[str, Any] = {"rope_theta": d.rope_theta, "rope_scaling": d.rope_scaling}
    if family.partial_rotary:
        found["partial_rotary_factor"] = d.partial_rotary_factor
    if not family.completed:
        return found
    whole = _parameters(d, family)
    if family.sliding_theta is None:
        return found | {"rope_parameters": whole}
    local = replace(d, layer_types=(), kinds={}, **d.kinds.get(SLIDING, {}))
    kinds = {FULL: whole, SLIDING: _parameters(local, family)}
    if family.sized_kinds:  # no older transformers knows the family
        return {"rope_parameters": kinds}
    return found | {"rope_local_base_freq": local.rope_theta, "rope_parameters": kinds}


def _parameters(d: Dimensions, family: Architecture) -> dict[str, Any]:
    partial = {"partial_rotary_factor": d.partial_rotary_factor} if family.partial_rotary else {}
    scaling = d.rope_scaling or {"rope_type": "default"}
    return {"rope_theta": d.rope_theta, **partial, **scaling}


def _kinds(d: Dimensions) -> dict[str, Any]:
    """The entries for blocks of several kinds."""
    types = [FULL if kind == NO_ROPE else kind for kind in d.layer_types]
    found: dict[str, Any] = {"sliding_window": d.sliding_window, "layer_types": types}
    if NO_ROPE in d.layer_types:
        found["no_rope_layers"] = [int(kind != NO_ROPE) for kind in d.layer_types]
    return found


def _family(checkpoint: Checkpoint) -> Architecture:
    """The family under whose name transformers loads the model. transformers' Llama refuses widths
    that its heads do not divide, and has all biases of attention or none. Mistral and Qwen2 compute
    the same without these limits."""
    family, d = checkpoint.architecture, checkpoint.dimensions
    if family.saved_as:
        return plugins.find("architectures", family.saved_as)  # type: ignore[no-any-return]
    if family.name != "llama":
        return family
    if any(spec.role == "attn_q.bias" for spec in checkpoint.specs.values()):
        return plugins.find("architectures", "qwen2")  # type: ignore[no-any-return]
    name = "mistral" if d.hidden_size % d.num_attention_heads else "llama"
    return plugins.find("architectures", name)  # type: ignore[no-any-return]


def _window(checkpoint: Checkpoint, family: Architecture) -> dict[str, Any]:
    """The entries for a sliding window of all layers, if there is one."""
    window = checkpoint.dimensions.sliding_window
    if window is None or family.window == "all":
        return {"sliding_window": window}
    return {"sliding_window": window, "use_sliding_window": True, "max_window_layers": 0}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
