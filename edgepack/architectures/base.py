"""What edgepack needs to know of a decoder family; the families themselves are data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

LINEAR_ROLES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
"""The weights of a block that are compressed, in the order in which they are used."""

BLOCK = {
    "attn_norm": "input_layernorm.weight",
    "attn_q": "self_attn.q_proj.weight",
    "attn_k": "self_attn.k_proj.weight",
    "attn_v": "self_attn.v_proj.weight",
    "attn_output": "self_attn.o_proj.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "ffn_gate": "mlp.gate_proj.weight",
    "ffn_up": "mlp.up_proj.weight",
    "ffn_down": "mlp.down_proj.weight",
}
"""Role (GGUF's own word, so ``blk.{i}.{role}.weight``) → Hugging Face name inside a block."""

QKV_BIAS = {
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
}
QK_NORM = {
    "attn_q_norm": "self_attn.q_norm.weight",
    "attn_k_norm": "self_attn.k_norm.weight",
}
OUTSIDE = {
    "token_embd": "model.embed_tokens.weight",
    "output_norm": "model.norm.weight",
    "output": "lm_head.weight",
}

NORMS = ("attn_norm", "ffn_norm", "output_norm")
"""Gains over the residual stream."""
ATTENTION_READS = ("attn_q", "attn_k", "attn_v")
FEED_READS = ("ffn_gate", "ffn_up")
WRITE = ("attn_output", "ffn_down")
"""What adds to the residual stream."""
START = ("token_embd", "position_embd")
"""What it starts as the sum of."""

NORMED_WRITERS = ("gemma2", "gemma3", "gemma3_text", "olmo2", "olmo3")
"""Families (config.json's ``model_type``) with norms behind what writes the residual stream: their
gains stand between the weights and the stream, so that no rotation of it can be fused."""


def with_biases(modules: Mapping[str, str]) -> dict[str, str]:
    """Names inside a block whose modules, given by role, all have a weight and a bias."""
    weights = {role: f"{name}.weight" for role, name in modules.items()}
    return weights | {f"{role}.bias": f"{name}.bias" for role, name in modules.items()}


@dataclass(frozen=True)
class Architecture:
    """A pre-norm decoder; with RMSNorm, rotary positions, grouped-query attention and a gated MLP,
    unless its roles say otherwise (``attn_norm.bias``: LayerNorm; ``position_embd``: learned
    positions; no ``ffn_gate``: a plain MLP).

    `block` and `optional` map roles to Hugging Face names inside a block (role ``attn_q.bias`` is
    the bias of ``attn_q``); `optional` weights exist in some checkpoints of the family only.
    `outside` maps the roles outside the blocks, which lie in the list `layers`. `required` are
    settings of config.json that have no other value here, `renamed` those of our dimensions that
    are called otherwise there, `ignored` are keys that mean something in other families only.
    If config.json says nothing, models are `tied`, norms have the `usual_eps`, and there are
    `usual_kv_heads` of `usual_head_dim` (None: as many as heads, an even share of the width) of
    which `usual_partial_rotary` turns: transformers' defaults. `window` says which layers may have
    a sliding window: none (""), "all", or as the configuration has it "by layer"; it is
    `usual_window` positions wide (None: there is none) where config.json does not name it.
    Learned positions begin with `unused_positions` rows that no
    token meets. In a `parallel` block
    attention and feed-forward part read the residual stream behind the same norm.
    `gguf` is the architecture's name in GGUF, "" if it has none; `permute_qk` says whether its q
    and k rows are stored there in llama.cpp's interleaved rotary order, `square_q` whether
    llama.cpp takes q to be as wide as the hidden state.
    """

    name: str
    class_name: str
    gguf: str
    block: Mapping[str, str]
    optional: Mapping[str, str]
    permute_qk: bool
    square_q: bool = False
    layers: str = "model.layers"
    outside: Mapping[str, str] = field(default_factory=lambda: OUTSIDE)
    activation: str = "silu"
    required: Mapping[str, Any] = field(default_factory=lambda: {"hidden_act": "silu"})
    renamed: Mapping[str, str] = field(default_factory=dict)
    parallel: bool = False
    tied: bool = False
    partial_rotary: bool = False
    usual_eps: float = 1e-6
    usual_kv_heads: int | None = None
    usual_head_dim: int | None = None
    usual_partial_rotary: float = 1.0
    window: Literal["", "all", "by layer"] = ""
    usual_window: int | None = 4096
    ignored: frozenset[str] = frozenset()
    unused_positions: int = 0

    @property
    def read_behind(self) -> Mapping[str, str]:
        """What reads the residual stream, and the norm it reads it through."""
        feed = "attn_norm" if self.parallel else "ffn_norm"
        return {
            **dict.fromkeys(ATTENTION_READS, "attn_norm"),
            **dict.fromkeys(FEED_READS, feed),
            "output": "output_norm",
        }

    def hf_name(self, role: str, block: int | None = None) -> str:
        """The Hugging Face name of a role (outside the blocks when `block` is None)."""
        if block is None:
            return self.outside[role]
        return f"{self.layers}.{block}." + {**self.block, **self.optional}[role]

    def gguf_name(self, role: str, block: int | None = None) -> str:
        """The GGUF tensor name of a role."""
        stem, _, kind = role.partition(".")
        name = f"{stem}.{kind or 'weight'}"
        return name if block is None else f"blk.{block}.{name}"
