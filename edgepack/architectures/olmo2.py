"""OLMo 2: norms only behind attention and MLP, and norms of q and k over all heads."""

from edgepack.architectures.base import BLOCK, NORMED_WRITERS, QK_NORM, Architecture

ROLES = {role: name for role, name in BLOCK.items() if role not in ("attn_norm", "ffn_norm")}

PLUGIN = Architecture(
    name="olmo2",
    class_name="Olmo2ForCausalLM",
    gguf="olmo2",
    block=ROLES | QK_NORM | NORMED_WRITERS,
    shapes={"attn_q_norm": ("q",), "attn_k_norm": ("kv",)},
    square_q=True,
    head="untied",
    required={"hidden_act": "silu", "attention_bias": False},
    completed=True,
)
