"""What edgepack needs to know of a decoder family; the families themselves are data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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

READ_BEHIND = {
    "attn_q": "attn_norm",
    "attn_k": "attn_norm",
    "attn_v": "attn_norm",
    "ffn_gate": "ffn_norm",
    "ffn_up": "ffn_norm",
    "output": "output_norm",
}
"""What reads the residual stream, and the norm it reads it through."""
WRITE = ("attn_output", "ffn_down")
"""What adds to the residual stream; the embeddings start it."""


@dataclass(frozen=True)
class Architecture:
    """A pre-norm decoder with RMSNorm, rotary positions, grouped-query attention and a gated MLP.

    `block` and `optional` map roles to Hugging Face names inside a block (role ``attn_q.bias`` is
    the bias of ``attn_q``); `optional` weights exist in some checkpoints of the family only.
    `gguf` is the architecture's name in GGUF; `permute_qk` says whether its q and k rows are
    stored there in llama.cpp's interleaved rotary order, `square_q` whether llama.cpp takes q to be
    as wide as the hidden state.
    """

    name: str
    class_name: str
    gguf: str
    block: Mapping[str, str]
    optional: Mapping[str, str]
    permute_qk: bool
    square_q: bool = False

    def hf_name(self, role: str, block: int | None = None) -> str:
        """The Hugging Face name of a role (outside the blocks when `block` is None)."""
        if block is None:
            return OUTSIDE[role]
        return f"model.layers.{block}." + {**self.block, **self.optional}[role]

    def gguf_name(self, role: str, block: int | None = None) -> str:
        """The GGUF tensor name of a role."""
        stem, _, kind = role.partition(".")
        name = f"{stem}.{kind or 'weight'}"
        return name if block is None else f"blk.{block}.{name}"
