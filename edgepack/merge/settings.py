"""config.json of the result: the donor's, with what layers, rows and types have changed in it.

The donor is the base, or else the first model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from edgepack.errors import RecipeError
from edgepack.merge.inputs import LAYER_COUNTS, Input
from edgepack.merge.layout import Layout

DROPPED = ("_name_or_path", "torch_dtype", "transformers_version")
"""Entries that would no longer be true, or that `dtype` replaces."""
NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
IDS = "_token_id"
"""End of keys of ids of tokens."""
FIRST_FULL = "max_window_layers"
"""Qwen2: layers from this one on have a sliding window, where `use_sliding_window` says so."""


def settings(layout: Layout, donor: Input, rows: int | None) -> dict[str, Any]:
    """The configuration of the result. `rows` is the new number of rows of the embeddings."""
    config = {key: value for key, value in donor.config.items() if key not in DROPPED}
    counts = {key: config[key] for key in LAYER_COUNTS if isinstance(config.get(key), int)}
    layers = donor.layers.count if donor.layers else 0
    if layout.origins != tuple((layout.inputs.index(donor), i) for i in range(layers)):
        if not counts:
            raise RecipeError(
                f"slices: config.json of {donor.name} does not say how many layers there are",
                hint="write `models` in place of `slices`",
            )
        _refuse_moved_window(config)
        for key, value in config.items():
            if isinstance(value, list) and len(value) == layers and "layer" in key:
                config[key] = _by_layer(key, layout)
        config |= dict.fromkeys(counts, len(layout.origins))
    if rows is not None:
        config["vocab_size"] = rows
    if donor.architecture is not None or "tie_word_embeddings" in config:
        config["tie_word_embeddings"] = layout.tied
    types = Counter[str]()
    for tensor in layout.tensors:
        types[tensor.dtype] += tensor.numel
    config["dtype"] = NAMES[types.most_common(1)[0][0]]
    return config


def _by_layer(key: str, layout: Layout) -> list[Any]:
    """A list with an entry for every layer (`layer_types` …), each from the layer's own model."""
    found = []
    for place, layer in layout.origins:
        values: Sequence[Any] = layout.inputs[place].config.get(key) or ()
        if layer >= len(values):
            raise RecipeError(
                f"slices: {layout.inputs[place].name} has no {key} for layer {layer}",
                hint="take slices of models that all have it",
            )
        found.append(values[layer])
    return found


def _refuse_moved_window(config: dict[str, Any]) -> None:
    """A window that begins at a layer's number, which means others when layers are stacked."""
    if config.get("use_sliding_window") and "layer_types" not in config and config.get(FIRST_FULL):
        raise RecipeError(
            f"slices: {FIRST_FULL} counts layers, and cannot be kept when layers are stacked",
            hint="write layer_types into config.json in its place",
        )


def with_token_ids(content: Mapping[str, Any], owner: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose ids of special tokens are those of `owner`: the configuration of the
    model whose tokenizer the result has."""
    ids = {key: value for key, value in owner.items() if key.endswith(IDS)}
    return {key: value for key, value in content.items() if not key.endswith(IDS)} | ids
