"""Small random models, made on the spot: real configurations, real files, no downloads."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from edgepack.checkpoint import Checkpoint
from edgepack.core import plugins
from edgepack.export._gguf_stacks import in_stacks
from edgepack.model import padding
from edgepack.slicing.stage import why_not

FAMILIES = [f for f in plugins.names("architectures") if plugins.find("architectures", f).gguf]
"""Those that can be packed; the others can be sliced."""
WITHOUT_EXPERTS = [f for f in FAMILIES if plugins.find("architectures", f).router is None]
"""Those whose blocks have one MLP."""
ROTATABLE = [f for f in FAMILIES if plugins.find("architectures", f).rotates_freely]
"""Those whose residual stream may be rotated, so that they can be sliced."""
TIES = [
    (family, tied)
    for family in ROTATABLE
    for tied in (True, False)
    if not tied or not plugins.find("architectures", family).completed
]
"""Families that can be rotated, the oldest ones with tied heads and with others."""
SLICED = [
    (family, tied)
    for family, tied in TIES
    if why_not(plugins.find("architectures", family), "global") is None
]
"""Those whose models stay in the family when they are sliced."""
PADDED = [
    (f, tied) for f, tied in TIES if padding.why_not(plugins.find("architectures", f)) is None
]
"""Those whose widths may be padded."""
SQUARE = {f for f in FAMILIES if plugins.find("architectures", f).square_q}
"""Those whose heads llama.cpp takes to be as wide together as the hidden state."""
LAYER_NORM = [f for f in plugins.names("architectures") if f not in FAMILIES]

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
"""Llama 3's rotary scaling, for contexts as short as those of tests."""
TEMPERED = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
"""Ministral 3's: queries grow from the 16th position on."""
OWN_CONFIG: dict[str, dict[str, object]] = {
    "smollm3": {"pad_token_id": 0},
    "ministral3": {
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "granite": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
    "granitemoehybrid": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
        "num_local_experts": 0,
        "position_embedding_type": "rope",
        "layer_types": ["full_attention"] * 2,
        "mamba_n_heads": 4,
    },
    "ernie4_5": {"head_dim": 16},
    "gemma": {"head_dim": 16},
    "exaone4": {"sliding_window": None, "layer_types": ["full_attention"]},
    "hunyuan_v1_dense": {
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "olmo3": {"sliding_window": 24},
    "gemma2": {"head_dim": 16, "sliding_window": 24},
    "gemma3_text": {"head_dim": 16, "sliding_window": 24},
    "gemma4_text": {
        "head_dim": 16,
        "global_head_dim": 32,
        "sliding_window": 24,
        "final_logit_softcapping": 30.0,
        "hidden_size_per_layer_input": 32,
    },
    "phi3": {"pad_token_id": 0},
    "qwen3_moe": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "lfm2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_dense_layers": 1,
        "moe_intermediate_size": 64,
        "layer_types": ["conv", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "lfm2": {
        "layer_types": ["conv", "full_attention"],
        "block_auto_adjust_ff_dim": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "qwen3_5_text": {
        "layer_types": ["linear_attention", "full_attention"],
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 1, 1],
        },
    },
}
LONGROPE = {
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0 + 0.1 * i for i in range(6)],
        "long_factor": [1.0 + 0.7 * i for i in range(6)],
    },
}
"""Phi-4-mini's rotary positions for heads of 16: other divisors beyond the original context."""
KINDS = {
    "gemma3_text": ("sliding_attention", "full_attention"),
    "gemma4_text": ("sliding_attention", "full_attention"),
    "olmo3": ("sliding_attention", "full_attention"),
}
"""Kinds of blocks, so that two blocks have both."""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = """The quick brown fox jumps over the lazy dog, and then it's time to rest.
Pack my box with five dozen liquor jugs; we'll see what they're worth.
In 1969 the moon was 384400 kilometres away, in 2024 a little more: 3.14159.
def add(left, right): return left + right  # the sum of left and right
Les élèves français étaient là où naît la rivière. Größe, Straße, señor.
Быстрая коричневая лиса. 素早い茶色の狐。
""".splitlines()


def make_tokenizer(pre: pre_tokenizers.PreTokenizer | None = None, vocab: int = 512):
    """A byte-level BPE trained on a few lines, GPT-2's splitting unless told otherwise."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[0],
        chat_template=CHAT,
        clean_up_tokenization_spaces=False,
    )


def make_model(
    folder: Path,
    family: str = "llama",
    *,
    tied: bool = True,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    intermediate: int = 96,
    vocab: int = 512,
    rows: int | None = None,
    seed: int = 0,
    shards: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    **config,
):
    """Save a random model with its tokenizer in `folder`; returns the transformers model.

    `rows` pads the embedding beyond the tokenizer's vocabulary; `config` goes to the family's
    configuration class as it is (``rope_parameters=…``).
    """
    architecture = plugins.find("architectures", family)
    config = OWN_CONFIG.get(family, {}) | config
    if "layer_types" in config and family == "granitemoehybrid":
        config["layer_types"] = ["full_attention"] * layers
        config["mamba_d_head"] = 2 * hidden // config["mamba_n_heads"]
    if family in KINDS:
        kinds = [KINDS[family][i % 2] for i in range(layers)]
        config = {"layer_types": kinds} | config
    if types := config.get("layer_types"):
        config["layer_types"] = [types[i % len(types)] for i in range(layers)]
    tokenizer = make_tokenizer(vocab=vocab)
    if family == "qwen3" or "head_dim" in config or (head_dim is not None and family in FAMILIES):
        config["head_dim"] = head_dim or hidden // heads
    if family == "gemma4_text":
        config["vocab_size_per_layer_input"] = rows or len(tokenizer)
    if family in ("gemma2", "gemma3_text"):  # as llama.cpp takes it
        config.setdefault("query_pre_attn_scalar", config["head_dim"])
    if family == "opt":
        config["word_embed_proj_dim"] = hidden
    else:
        config["num_key_value_heads"] = kv_heads
    config[architecture.renamed.get("intermediate_size", "intermediate_size")] = intermediate
    model_class = getattr(transformers, architecture.class_name)
    settings = model_class.config_class(
        vocab_size=rows or len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **{"max_position_embeddings": 256} | config,
    )
    torch.manual_seed(seed)
    model = model_class(settings).eval()
    for parameter in model.parameters():  # not model.to: rotary frequencies stay float32
        parameter.data = parameter.data.to(dtype)
    _randomise(model)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    limit = size if shards == 1 else size // shards
    model.save_pretrained(folder, max_shard_size=int(limit * 1.2) if shards == 1 else limit)
    tokenizer.save_pretrained(folder)
    return model


@torch.no_grad()
def _randomise(model: torch.nn.Module) -> None:
    """Weights wide enough that logits are not flat; norms and biases away from 1 and 0."""
    shift = plugins.find("architectures", model.config.model_type).norm_shift  # stored as γ − 1
    for name, value in model.named_parameters():
        if name.endswith("A_log"):
            value.normal_(-1.0, 0.5)
        elif "norm" in name:
            value.normal_(1.0 if "linear_attn" in name else 1.0 - shift, 0.1)
        elif value.ndim == 1:
            value.normal_(0.0, 0.1)
        else:
            value.normal_(0.0, 1.5 / value.shape[-1] ** 0.5)


def write_gguf(path: Path, checkpoint: Checkpoint, kind: str = "F32") -> None:
    """An unquantized GGUF of a checkpoint as llama.cpp's conversion lays it out.

    q and k rows are put in rotary order with llama.cpp's own formula, not with edgepack's.
    """
    dims, architecture = checkpoint.dimensions, checkpoint.architecture
    heads = {"attn_q": dims.num_attention_heads, "attn_k": dims.num_key_value_heads}
    writer = gguf.GGUFWriter(path, architecture.gguf)
    for key, (value, value_type, element) in checkpoint.gguf_metadata().items():
        if key != "general.architecture":
            writer.add_key_value(key, value, value_type, element)
    for several in in_stacks(checkpoint.specs.values()):
        spec = several[0]
        W = np.stack([checkpoint.tensor(one.name).numpy() for one in several])
        W = W[0] if spec.expert is None else W
        W = W.squeeze(1) if len(spec.shape) == 3 else W  # kernels
        n = heads.get(spec.role.partition(".")[0])
        if n is not None and architecture.permute_qk:
            pairs = W.reshape(n, 2, W.shape[0] // n // 2, *W.shape[1:])
            W = np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(W.shape))
        stored = gguf.GGMLQuantizationType[kind if spec.is_matrix else "F32"]
        data = gguf.quants.quantize(W, stored)
        writer.add_tensor(architecture.gguf_name(spec.role, spec.block), data, raw_dtype=stored)
    for name, values in checkpoint.extra_tensors().items():
        writer.add_tensor(name, values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
