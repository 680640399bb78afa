"""OPT: LayerNorm, learned positions, a plain MLP, biases everywhere. To be sliced; llama.cpp has no
such architecture."""

from edgepack.architectures.base import Architecture, with_biases

ATTENTION = {
    "attn_q": "q_proj",
    "attn_k": "k_proj",
    "attn_v": "v_proj",
    "attn_output": "out_proj",
}
MODULES = {
    "attn_norm": "self_attn_layer_norm",
    **{role: f"self_attn.{name}" for role, name in ATTENTION.items()},
    "ffn_norm": "final_layer_norm",
    "ffn_up": "fc1",
    "ffn_down": "fc2",
}

PLUGIN = Architecture(
    name="opt",
    class_name="OPTForCausalLM",
    gguf="",
    block=with_biases(MODULES),
    optional={},
    permute_qk=False,
    layers="model.decoder.layers",
    outside={
        "token_embd": "model.decoder.embed_tokens.weight",
        "position_embd": "model.decoder.embed_positions.weight",
        "output_norm": "model.decoder.final_layer_norm.weight",
        "output_norm.bias": "model.decoder.final_layer_norm.bias",
        "output": "lm_head.weight",
    },
    activation="relu",
    tied=True,
    usual_eps=1e-5,
    unused_positions=2,
    required={
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "_remove_final_layer_norm": False,
    },
    renamed={"intermediate_size": "ffn_dim"},
    ignored=frozenset(
        {
            "num_key_value_heads",
            "head_dim",
            "rms_norm_eps",
            "rope_theta",
            "rope_parameters",
            "rope_scaling",
            "partial_rotary_factor",
        }
    ),
)
