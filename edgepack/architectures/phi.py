"""Phi-1 to Phi-2: attention and a plain MLP side by side behind one LayerNorm, rotary positions in
part of a head, biases everywhere. To be sliced."""

from edgepack.architectures.base import Architecture, with_biases

MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.dense",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}

PLUGIN = Architecture(
    name="phi",
    class_name="PhiForCausalLM",
    gguf="",
    block=with_biases(MODULES),
    optional={},
    permute_qk=False,
    outside={
        "token_embd": "model.embed_tokens.weight",
        "output_norm": "model.final_layernorm.weight",
        "output_norm.bias": "model.final_layernorm.bias",
        "output": "lm_head.weight",
        "output.bias": "lm_head.bias",
    },
    activation="gelu_new",
    required={"hidden_act": "gelu_new", "qk_layernorm": False},
    renamed={"rms_norm_eps": "layer_norm_eps"},
    parallel=True,
    partial_rotary=True,
    usual_eps=1e-5,
    usual_partial_rotary=0.5,
)
