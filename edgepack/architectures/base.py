"""What edgepack needs to know of a decoder family; the families themselves are data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edgepack.core.parts import part_name

LINEAR_ROLES = (
    *("attn_qkv", "attn_q", "attn_k", "attn_v", "attn_output"),
    *("conv_in", "conv_out"),
    *("ssm_qkv", "ssm_gate", "ssm_out"),
    *("ffn_gate", "ffn_up", "ffn_down"),
    *("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
    *("inp_gate", "proj"),
)
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
ATTENTION_READS = ("attn_qkv", "attn_q", "attn_k", "attn_v")
MIXER_READS = ("conv_in", "ssm_qkv", "ssm_gate", "ssm_alpha", "ssm_beta")
"""What reads the stream in blocks that have another mixer than attention."""
FEED_READS = ("ffn_gate", "ffn_up", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps")
WRITE = ("attn_output", "conv_out", "ssm_out", "ffn_down", "ffn_down_exps")
"""What adds to the residual stream."""
START = ("token_embd", "position_embd")
"""What it starts as the sum of."""

BEHIND = {"attn_output": "post_attention_norm", "ffn_down": "post_ffw_norm"}
"""The norm behind what writes the residual stream, where a family has one: its gain stands between
the weight and the stream, so that no rotation of the stream can be fused."""
NORMED_WRITERS = {
    "post_attention_norm": "post_attention_layernorm.weight",
    "post_ffw_norm": "post_feedforward_layernorm.weight",
}
FUSED_QKV = {"attn_qkv": "self_attn.qkv_proj.weight"}

FULL, SLIDING, NO_ROPE = "full_attention", "sliding_attention", "no_rope"
"""Kinds of blocks: attention to all positions, to those of a window, and without rotary positions.
"""
CONV, LINEAR = "conv", "linear_attention"
"""Kinds of blocks without attention: a short convolution (LFM2), a gated delta net (Qwen3.5)."""
SHARED_SLIDING, SHARED_FULL = "shared_sliding_attention", "shared_full_attention"
"""Kinds of attention that have no keys and values of their own: they read those of the last block
before them that has some, with a window or without."""
KEYS_ONLY = "keys_only_attention"
"""Attention to all positions whose values are its keys, before the norms of both."""
SHARES_WITH = {SHARED_SLIDING: (SLIDING,), SHARED_FULL: (FULL, KEYS_ONLY)}
"""Kinds without keys and values → the kinds whose they read."""
NO_WEIGHT_SUFFIX = frozenset({"ssm_a"})
"""Roles whose GGUF tensors are called by their stem alone."""


EXPERT = "{expert}"
"""Stands for an expert's index in the Hugging Face names of what every expert has of its own."""


@dataclass(frozen=True)
class Router:
    """Which experts get a token, and with what weights.

    The router's product is the experts' logits. `scores` of them are probabilities: of all experts
    together (``softmax``), or of each alone (``sigmoid``). The few best are taken (after adding
    ``exp_probs_b.bias`` if there is one), and their probabilities divided by their sum + `eps`.
    `routed` are the roles of blocks with experts, `dense` those of the first blocks without.
    """

    scores: Literal["softmax", "sigmoid"]
    routed: tuple[str, ...]
    dense: tuple[str, ...] = ()
    eps: float = 0.0


@dataclass(frozen=True)
class Number:
    """A number of the forward pass: config.json's `key` and, if llama.cpp reads it, GGUF's. Both
    files hold it as it is, or as the rule says: ``inverse``, 1 / number; ``inverse square``, number
    = 1 / √value. With the rule ``root`` it is the root of the value and no number of its own."""

    key: str
    gguf: str = ""
    rule: Literal["", "inverse", "inverse square", "root"] = ""
    assumed: float | None = None
    """What llama.cpp takes where GGUF's key is missing."""

    def read(self, value: float) -> float:
        """The number for a value of config.json (or of a GGUF)."""
        powers = {"": 1.0, "inverse": -1.0, "inverse square": -0.5, "root": 0.5}
        found: float = value ** powers[self.rule]
        return found

    def written(self, number: float) -> float:
        """The value for a number, the inverse of `read`."""
        powers = {"": 1.0, "inverse": -1.0, "inverse square": -2.0, "root": 2.0}
        found: float = number ** powers[self.rule]
        return found


def with_biases(modules: Mapping[str, str]) -> dict[str, str]:
    """Names inside a block whose modules, given by role, all have a weight and a bias."""
    weights = {role: f"{name}.weight" for role, name in modules.items()}
    return weights | {f"{role}.bias": f"{name}.bias" for role, name in modules.items()}


@dataclass(frozen=True)
class Architecture:
    """A decoder; with RMSNorm in front of attention and feed-forward part, rotary positions,
    grouped-query attention and a gated MLP, unless its roles say otherwise (``attn_norm.bias``:
    LayerNorm; ``position_embd``: learned positions; no ``ffn_gate``: a plain MLP, or one whose
    gate is the first half of ``ffn_up``; ``attn_qkv``: one weight for all three; no ``attn_norm``:
    the stream is read as it is; ``post_attention_norm``: a norm behind what is written).

    **Names.** `block` and `optional` map roles to Hugging Face names inside a block (role
    ``attn_q.bias`` is the bias of ``attn_q``); `optional` weights exist in some checkpoints of the
    family only. `outside` maps the roles outside the blocks, which lie in the list `layers`.
    `shapes` are those of roles that differ from the usual (`checkpoint._layout.SHAPES`).
    `gguf_names` are stems of tensors that GGUF calls otherwise than our role. `stored` are tensors
    that files have instead: their rows are those of one role or, in equal parts, of several.

    Names of what an expert has of its own hold `EXPERT` where its index is.

    `kind_roles` are roles that only blocks of a kind have; a role that no kind names is in all
    blocks.

    **config.json.** `required` are settings that have no other value here, `renamed` those of our
    dimensions that are called otherwise there, `ignored` are keys that mean something in other
    families only. What config.json does not say is as transformers' configuration class has it if
    the family is `completed`. Otherwise models are `tied`, norms have the `usual_eps`, and there
    are `usual_kv_heads` of `usual_head_dim` (None: as many as heads, an even share of the width) of
    which `usual_partial_rotary` turns. `wrapper` names the model types of multimodal repositories
    whose ``text_config`` is a model of this family. `saved_as` is the family under whose name a
    model is written, where that is another.

    **Computation.** `numbers` maps dimensions such as ``residual_scale`` to where config.json has
    them. `norm_shift` is added to stored gains (Gemma's are γ − 1). `head_norms_last`: the norms of
    q and k come behind the rotation. `neighbours`: the two rows of a rotary pair are neighbours in
    Hugging Face's order, not half a head apart. `window` says which layers may have a sliding
    window: none (""), "all", or as the configuration has it "by layer"; it is `usual_window`
    positions wide (None: there is none) where config.json does not name it. In a family of
    `mixed` kinds of blocks, ``layer_types`` says the kind of each. If those with a window have
    rotary positions of their own, their base is `sliding_theta` where a GGUF does not say it (0:
    that of the others). Learned positions begin with
    `unused_positions` rows that no token meets. In a `parallel` block attention and feed-forward
    part read the residual stream behind the same norm. With `gated_queries`, attn_q has a gate
    behind every head's query, and attention's output is multiplied by its sigmoid. `value_norm`:
    values have an RMSNorm without a gain. `fixed` are dimensions that no file says. In a family
    of `sized_kinds`, kinds of blocks differ in the sizes of heads or inner widths.

    **GGUF.** `gguf` is the architecture's name there, "" if it has none. `permute_qk` says whether
    its q and k rows are stored in llama.cpp's interleaved rotary order, `square_q` whether
    llama.cpp takes q to be as wide as the hidden state, `head` whether it knows only heads that
    are "tied" to the embeddings or only "untied" ones,
    `yarn_betas` whether it reads YaRN's betas. `period` are the kinds of blocks, over and
    over, that llama.cpp assumes.
    """

    name: str
    class_name: str
    gguf: str
    block: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    permute_qk: bool = False
    square_q: bool = False
    layers: str = "model.layers"
    outside: Mapping[str, str] = field(default_factory=lambda: OUTSIDE)
    shapes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    gguf_names: Mapping[str, str] = field(default_factory=dict)
    stored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kind_roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    activation: str = "silu"
    required: Mapping[str, Any] = field(default_factory=lambda: {"hidden_act": "silu"})
    renamed: Mapping[str, str] = field(default_factory=dict)
    completed: bool = False
    wrapper: tuple[str, ...] = ()
    saved_as: str = ""
    numbers: Mapping[str, Number] = field(default_factory=dict)
    norm_shift: float = 0.0
    head_norms_last: bool = False
    neighbours: bool = False
    gated_queries: bool = False
    value_norm: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)
    sized_kinds: bool = False
    parallel: bool = False
    tied: bool = False
    partial_rotary: bool = False
    rope_sections: tuple[int, ...] = ()
    usual_eps: float = 1e-6
    usual_kv_heads: int | None = None
    usual_head_dim: int | None = None
    usual_partial_rotary: float = 1.0
    window: Literal["", "all", "by layer"] = ""
    usual_window: int | None = 4096
    sliding_theta: float | None = None
    head: Literal["", "tied", "untied"] = ""
    yarn_betas: bool = False
    router: Router | None = None
    mixed: bool = False
    period: tuple[str, ...] = ()
    ignored: frozenset[str] = frozenset()
    unused_positions: int = 0

    @property
    def read_behind(self) -> Mapping[str, str]:
        """What reads the residual stream, and the norm it reads it through."""
        feed = "attn_norm" if self.parallel else "ffn_norm"
        return {
            **dict.fromkeys((*ATTENTION_READS, *MIXER_READS), "attn_norm"),
            **dict.fromkeys(FEED_READS, feed),
            "output": "output_norm",
        }

    @property
    def rotates_freely(self) -> bool:
        """Whether the residual stream may be rotated: no norm stands behind what writes it, and
        what reads it does so through one."""
        roles = {**self.block, **self.optional}
        return "attn_norm" in roles and not any(norm in roles for norm in BEHIND.values())

    def roles(self, kind: str | None = None, *, routed: bool = True) -> tuple[str, ...]:
        """The roles that a block of some kind may have, the optional ones last; `routed` says
        whether it has experts where the family has them."""
        others = {role for roles in self.kind_roles.values() for role in roles}
        others -= set(self.kind_roles.get(kind or "", ()))
        if self.router is not None:
            others |= set(self.router.dense if routed else self.router.routed)
        return tuple(r for r in (*self.block, *self.optional) if r not in others)

    def is_stack(self, role: str) -> bool:
        """Whether every expert has a weight of that role."""
        return EXPERT in {**self.block, **self.optional}.get(role, "")

    def hf_name(self, role: str, block: int | None = None, expert: int | None = None) -> str:
        """The Hugging Face name of a role (outside the blocks when `block` is None)."""
        if block is None:
            return self.outside[role]
        name = f"{self.layers}.{block}." + {**self.block, **self.optional}[role]
        return name if expert is None else name.replace(EXPERT, str(expert))

    def gguf_name(self, role: str, block: int | None = None, expert: int | None = None) -> str:
        """The GGUF tensor name of a role. Files have stacks of all experts; what one expert has
        there is named with its index (`part_name`)."""
        stem, _, kind = role.partition(".")
        name = part_name(f"{self.gguf_names.get(stem, stem)}.{kind or 'weight'}", expert)
        if role in NO_WEIGHT_SUFFIX:
            name = stem
        return name if block is None else f"blk.{block}.{name}"
