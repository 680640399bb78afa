"""Names and shapes of the tensors of a family's models; the order of q and k rows in GGUF."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgepack.architectures.base import SHARES_WITH, Architecture
from edgepack.checkpoint.base import Dimensions
from edgepack.core.untrusted import shorten
from edgepack.core.weights import WeightSpec
from edgepack.errors import CheckpointError

SHAPES = {
    "token_embd": ("vocab", "hidden"),
    "position_embd": ("positions", "hidden"),
    "output_norm": ("hidden",),
    "output_norm.bias": ("hidden",),
    "output": ("vocab", "hidden"),
    "output.bias": ("vocab",),
    "attn_norm": ("hidden",),
    "attn_qkv": ("qkv", "hidden"),
    "attn_q": ("q", "hidden"),
    "attn_k": ("kv", "hidden"),
    "attn_v": ("kv", "hidden"),
    "attn_q.bias": ("q",),
    "attn_k.bias": ("kv",),
    "attn_v.bias": ("kv",),
    "attn_q_norm": ("head",),
    "attn_k_norm": ("head",),
    "attn_output": ("hidden", "q"),
    "post_attention_norm": ("hidden",),
    "post_ffw_norm": ("hidden",),
    "ffn_norm": ("hidden",),
    "ffn_gate": ("ffn", "hidden"),
    "ffn_up": ("ffn", "hidden"),
    "ffn_down": ("hidden", "ffn"),
    "ffn_gate_inp": ("experts", "hidden"),
    "exp_probs_b.bias": ("experts",),
    "ffn_gate_exps": ("expert_ffn", "hidden"),
    "ffn_up_exps": ("expert_ffn", "hidden"),
    "ffn_down_exps": ("hidden", "expert_ffn"),
    "attn_norm.bias": ("hidden",),
    "attn_output.bias": ("hidden",),
    "ffn_norm.bias": ("hidden",),
    "ffn_gate.bias": ("ffn",),
    "ffn_up.bias": ("ffn",),
    "ffn_down.bias": ("hidden",),
    "conv_in": ("bcx", "hidden"),
    "conv": ("hidden", "one", "kernel"),
    "conv_out": ("hidden", "hidden"),
    "ssm_qkv": ("delta_qkv", "hidden"),
    "ssm_gate": ("delta_v", "hidden"),
    "ssm_alpha": ("delta_heads", "hidden"),
    "ssm_beta": ("delta_heads", "hidden"),
    "ssm_conv1d": ("delta_qkv", "one", "kernel"),
    "ssm_a": ("delta_heads",),
    "ssm_dt.bias": ("delta_heads",),
    "ssm_norm": ("delta_head",),
    "ssm_out": ("hidden", "delta_v"),
    "inp_gate": ("per_layer", "hidden"),
    "proj": ("hidden", "per_layer"),
    "post_norm": ("per_layer_hidden",),
    "layer_output_scale": ("one",),
    "per_layer_token_embd": ("vocab", "per_layers"),
    "per_layer_model_proj": ("per_layers", "hidden"),
    "per_layer_proj_norm": ("per_layer",),
}
"""Role → shape, as keys of `sizes`; a family may have others (`Architecture.shapes`). GGUF leaves
out dimensions of one."""


def shape_words(architecture: Architecture, role: str) -> tuple[str, ...]:
    """The shape of a role, as keys of `sizes`; that of a shortcut if the role is unknown."""
    return architecture.shapes.get(role) or SHAPES.get(role, ("hidden", "hidden"))


Where = tuple[str, int | None, int | None]
"""Role, block and expert of a weight; None: of no block, of no expert."""
NameOf = Callable[[str, int | None, int | None], str]


@dataclass(frozen=True)
class TensorInfo:
    """Shape and type of a tensor in a file's header."""

    shape: tuple[int, ...]
    dtype: str


def match(
    place: str,
    architecture: Architecture,
    dimensions: Dimensions,
    tensors: Mapping[str, TensorInfo],
    name_of: NameOf,
    *,
    sliced: bool = False,
) -> tuple[dict[str, WeightSpec], dict[str, str]]:
    """The specs by Hugging Face name, and the name under which each weight is stored.

    `name_of(role, block, expert)` is the name in the source. In a `sliced` model, the residual
    stream may be narrower than the hidden size, and blocks have shortcut matrices. Missing,
    unexpected and misshapen tensors are errors, because a model that differs from its family
    computes something else.
    """
    blocks = dimensions.num_hidden_layers
    if blocks > len(tensors):  # checked before anything loops over the blocks
        raise CheckpointError(
            f"{place}: the configuration says {blocks} blocks, "
            f"and there are {len(tensors)} tensors",
            hint="the configuration and the weights are not of the same model",
        )
    routed = blocks - dimensions.num_dense_layers
    if routed * dimensions.num_experts > len(tensors):
        raise CheckpointError(
            f"{place}: the configuration says {dimensions.num_experts} experts in {routed} blocks, "
            f"and there are {len(tensors)} tensors",
            hint="the configuration and the weights are not of the same model",
        )
    places = _places(architecture, dimensions, tensors, name_of)
    stored = {name_of(*one): one for one in places}
    _refuse(place, "lacks tensors", [name for name in stored if name not in tensors])
    unread = set(_unread(architecture, dimensions, name_of))
    _refuse(
        place,
        f"has tensors that are no part of a {architecture.name} model",
        [name for name in tensors if name not in stored and name not in unread],
    )
    kinds = _sizes_by_kind(architecture, dimensions)
    specs, names = {}, {}
    for name, (role, block, expert) in stored.items():
        widths = kinds[None if block is None else dimensions.kind(block)]
        words = shape_words(architecture, role)
        wanted = tuple(widths[word] for word in words)
        flat = tuple(widths[word] for word in words if word != "one")
        if sliced and len(wanted) == len(tensors[name].shape):
            sides = zip(words, wanted, tensors[name].shape, strict=True)
            wanted = tuple(min(w, n) if word == "hidden" else w for word, w, n in sides)
        if tensors[name].shape not in (wanted, flat):
            raise CheckpointError(
                f"{place}: {name} has shape {list(tensors[name].shape)}, "
                f"its configuration says {list(wanted)}",
                hint="the configuration and the weights are not of the same model",
            )
        hf = architecture.hf_name(role, block, expert)
        specs[hf] = WeightSpec(hf, wanted, tensors[name].dtype, role, block, expert)
        names[hf] = name
    return specs, names


def interleaved_rows(heads: int, head_dim: int) -> Tensor:
    """Row order of q and k in a llama GGUF: its row i is Hugging Face's row ``order[i]``.

    Hugging Face stores the two rows of a rotary pair half a head apart, llama.cpp side by side.
    """
    rows = torch.arange(heads * head_dim)
    return rows.reshape(heads, 2, head_dim // 2).transpose(1, 2).reshape(-1)


def gguf_rows(architecture: Architecture, dimensions: Dimensions, role: str) -> Tensor | None:
    """`interleaved_rows` for a role that the architecture stores in that order, else None."""
    heads = {
        "attn_q": dimensions.num_attention_heads,
        "attn_k": dimensions.num_key_value_heads,
    }.get(role.partition(".")[0])
    if heads is None or not architecture.permute_qk:
        return None
    return interleaved_rows(heads, dimensions.head_dim)


def gguf_shape(spec: WeightSpec) -> tuple[int, ...]:
    """The shape in a GGUF: kernels ``[channels, 1, width]`` lose the dimension of one."""
    return (spec.shape[0], *spec.shape[2:]) if len(spec.shape) > 2 else spec.shape


def _places(
    architecture: Architecture,
    dimensions: Dimensions,
    tensors: Mapping[str, TensorInfo],
    name_of: NameOf,
) -> Iterator[Where]:
    """Role, block and expert of every weight. Optional weights exist in all blocks or in none; a
    weight without rows or columns does not exist."""
    blocks = range(dimensions.num_hidden_layers)
    empty = {word for word, size in sizes(architecture, dimensions).items() if not size}

    def is_empty(role: str) -> bool:
        return not empty.isdisjoint(shape_words(architecture, role))

    absent = {
        role
        for role in architecture.optional
        if all(name_of(role, i, None) not in tensors for i in blocks)
    }
    yield "token_embd", None, None
    for block in blocks:
        for role, expert in block_parts(architecture, dimensions, block):
            if role not in absent and not is_empty(role):
                yield role, block, expert
    for role in architecture.outside:
        if role == "token_embd" or (role == "output" and dimensions.tie_word_embeddings):
            continue
        if not is_empty(role):
            yield role, None, None


def block_parts(
    architecture: Architecture, dimensions: Dimensions, block: int
) -> Iterator[tuple[str, int | None]]:
    """Role and expert of what a block may have."""
    routed = block >= dimensions.num_dense_layers
    for role in architecture.roles(dimensions.kind(block), routed=routed):
        if architecture.is_stack(role):
            yield from ((role, expert) for expert in range(dimensions.num_experts))
        else:
            yield role, None


def _unread(architecture: Architecture, dimensions: Dimensions, name_of: NameOf) -> Iterator[str]:
    """Names of weights of keys and values in blocks that read those of another block: published
    files have them, and nothing reads them."""
    others = {role for roles in architecture.kind_roles.values() for role in roles}
    for block, kind in enumerate(dimensions.layer_types):
        if kind in SHARES_WITH:
            yield from (name_of(role, block, None) for role in sorted(others))


def _sizes_by_kind(
    architecture: Architecture, dimensions: Dimensions
) -> dict[str | None, dict[str, int]]:
    """`sizes` of the blocks of every kind, and under None those of the model."""
    first = {kind: index for index, kind in reversed([*enumerate(dimensions.layer_types)])}
    found: dict[str | None, dict[str, int]] = {
        kind: sizes(architecture, dimensions.block(index)) for kind, index in first.items()
    }
    return found | {None: sizes(architecture, dimensions)}


def sizes(architecture: Architecture, dimensions: Dimensions) -> dict[str, int]:
    """The widths of a model, by the names that `SHAPES` uses."""
    return {
        "vocab": dimensions.vocab_size,
        "positions": dimensions.max_position_embeddings + architecture.unused_positions,
        "hidden": dimensions.hidden_size,
        "head": dimensions.head_dim,
        "q": dimensions.num_attention_heads * dimensions.head_dim,
        "kv": dimensions.num_key_value_heads * dimensions.head_dim,
        "qkv": (dimensions.num_attention_heads + 2 * dimensions.num_key_value_heads)
        * dimensions.head_dim,
        "ffn": dimensions.intermediate_size,
        "experts": dimensions.num_experts,
        "expert_ffn": dimensions.moe_intermediate_size,
        "gate_up": 2 * dimensions.intermediate_size,
        "one": 1,
        "per_layer": dimensions.hidden_size_per_layer_input,
        "per_layer_hidden": dimensions.hidden_size if dimensions.hidden_size_per_layer_input else 0,
        "per_layers": dimensions.num_hidden_layers * dimensions.hidden_size_per_layer_input,
        "kernel": dimensions.conv_kernel,
        "bcx": 3 * dimensions.hidden_size,
        **_delta_sizes(dimensions),
    }


def _delta_sizes(d: Dimensions) -> dict[str, int]:
    """The widths of a gated delta net."""
    keys = d.linear_num_key_heads * d.linear_key_head_dim
    values = d.linear_num_value_heads * d.linear_value_head_dim
    return {
        "delta_v": values,
        "delta_qkv": 2 * keys + values,
        "delta_heads": d.linear_num_value_heads,
        "delta_head": d.linear_value_head_dim,
        "q_gated": 2 * d.num_attention_heads * d.head_dim,
    }


def _refuse(place: str, problem: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointError(
            f"{place}: the checkpoint {problem}: {shorten(names[0], 80)}{more}",
            hint="an incomplete download, or a variant of the family that edgepack does not know",
        )
