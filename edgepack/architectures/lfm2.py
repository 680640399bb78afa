"""LFM2 and LFM2.5: short convolutions, with attention in some blocks."""

from edgepack.architectures.base import CONV, FULL, Architecture

ATTENTION = {
    "attn_q": "self_attn.q_proj.weight",
    "attn_k": "self_attn.k_proj.weight",
    "attn_v": "self_attn.v_proj.weight",
    "attn_q_norm": "self_attn.q_layernorm.weight",
    "attn_k_norm": "self_attn.k_layernorm.weight",
    "attn_output": "self_attn.out_proj.weight",
}
CONVOLUTION = {
    "conv_in": "conv.in_proj.weight",
    "conv": "conv.conv.weight",
    "conv_out": "conv.out_proj.weight",
}
FEED = {
    "ffn_norm": "ffn_norm.weight",
    "ffn_gate": "feed_forward.w1.weight",
    "ffn_up": "feed_forward.w3.weight",
    "ffn_down": "feed_forward.w2.weight",
}

PLUGIN = Architecture(
    name="lfm2",
    class_name="Lfm2ForCausalLM",
    gguf="lfm2",
    block={"attn_norm": "operator_norm.weight", **ATTENTION, **CONVOLUTION, **FEED},
    kind_roles={FULL: tuple(ATTENTION), CONV: tuple(CONVOLUTION)},
    square_q=True,
    outside={
        "token_embd": "model.embed_tokens.weight",
        "output_norm": "model.embedding_norm.weight",
        "output": "lm_head.weight",
    },
    gguf_names={
        "output_norm": "token_embd_norm",
        "conv_in": "shortconv.in_proj",
        "conv": "shortconv.conv",
        "conv_out": "shortconv.out_proj",
    },
    required={"conv_bias": False, "block_auto_adjust_ff_dim": False},
    renamed={"rms_norm_eps": "norm_eps", "conv_kernel": "conv_L_cache"},
    completed=True,
    wrapper=("lfm2_vl",),
    mixed=True,
)
