"""Models sliced by SliceGPT (Ashkboos et al., arXiv 2401.15024), for transformers.

edgepack puts this file beside the config.json of such a model; load it with
``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)``. The configuration is the
original's, with ``sliced_widths``: the columns of the residual stream where each block's attention
reads it, where its feed-forward part does, and so on, at last where the head does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    OPTForCausalLM,
    PhiForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)


class SlicedNorm(nn.Module):
    """RMSNorm that divides by the mean over the original's width."""

    def __init__(self, width: int, original: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.original, self.eps = original, eps

    def forward(self, x: Tensor) -> Tensor:
        """x ``[…, width]``; computed in float32."""
        h = x.float()
        h = h * torch.rsqrt(h.square().sum(-1, keepdim=True) / self.original + self.eps)
        return self.weight * h.to(x.dtype)


class SlicedLayer(nn.Module):
    """A block whose residual stream goes through a shortcut matrix beside either half."""

    def __init__(self, layer: Any, widths: Sequence[int], original: int, eps: float) -> None:
        super().__init__()
        before, between, after = widths
        self.attention_type = getattr(layer, "attention_type", "full_attention")
        self.self_attn: nn.Module = layer.self_attn
        self.mlp: nn.Module = layer.mlp
        for name in ("q_proj", "k_proj", "v_proj"):
            _resize(self.self_attn, name, columns=before)
        _resize(self.self_attn, "o_proj", rows=between)
        for name in ("gate_proj", "up_proj"):
            _resize(self.mlp, name, columns=between)
        _resize(self.mlp, "down_proj", rows=after)
        self.input_layernorm = SlicedNorm(before, original, eps)
        self.post_attention_layernorm = SlicedNorm(between, original, eps)
        self.attn_shortcut_Q = nn.Parameter(torch.empty(before, between))
        self.mlp_shortcut_Q = nn.Parameter(torch.empty(between, after))

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """What the family's own block takes besides goes to its attention."""
        normed = self.input_layernorm(hidden_states)
        attended, *_ = self.self_attn(hidden_states=normed, **kwargs)
        h = hidden_states @ self.attn_shortcut_Q + attended
        out: Tensor = h @ self.mlp_shortcut_Q + self.mlp(self.post_attention_layernorm(h))
        return out


class SlicedOPTLayer(nn.Module):
    """A block of OPT, whose LayerNorms have gone into its weights."""

    def __init__(self, layer: Any, widths: Sequence[int], original: int, eps: float) -> None:
        super().__init__()
        before, between, after = widths
        self.self_attn: nn.Module = layer.self_attn
        for name in ("q_proj", "k_proj", "v_proj"):
            _resize(self.self_attn, name, columns=before)
        _resize(self.self_attn, "out_proj", rows=between)
        self.fc1: nn.Module = nn.Linear(between, layer.fc1.out_features)
        self.fc2: nn.Module = nn.Linear(layer.fc2.in_features, after)
        self.activation_fn: nn.Module = layer.activation_fn
        self.self_attn_layer_norm = SlicedNorm(before, original, eps)
        self.final_layer_norm = SlicedNorm(between, original, eps)
        self.attn_shortcut_Q = nn.Parameter(torch.empty(before, between))
        self.mlp_shortcut_Q = nn.Parameter(torch.empty(between, after))

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """What the family's own block takes besides goes to its attention."""
        normed = self.self_attn_layer_norm(hidden_states)
        attended, *_ = self.self_attn(hidden_states=normed, **kwargs)
        h = hidden_states @ self.attn_shortcut_Q + attended
        inner = self.activation_fn(self.fc1(self.final_layer_norm(h)))
        out: Tensor = h @ self.mlp_shortcut_Q + self.fc2(inner)
        return out


class SlicedPhiLayer(nn.Module):
    """A block of Phi: both halves side by side, so that one shortcut passes them."""

    def __init__(self, layer: Any, widths: Sequence[int], original: int, eps: float) -> None:
        super().__init__()
        before, after = widths
        self.self_attn: nn.Module = layer.self_attn
        self.mlp: nn.Module = layer.mlp
        for name in ("q_proj", "k_proj", "v_proj"):
            _resize(self.self_attn, name, columns=before)
        _resize(self.self_attn, "dense", rows=after)
        _resize(self.mlp, "fc1", columns=before)
        _resize(self.mlp, "fc2", rows=after)
        self.input_layernorm = SlicedNorm(before, original, eps)
        self.attn_shortcut_Q = nn.Parameter(torch.empty(before, after))

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """What the family's own block takes besides goes to its attention."""
        normed = self.input_layernorm(hidden_states)
        attended, *_ = self.self_attn(hidden_states=normed, **kwargs)
        out: Tensor = hidden_states @ self.attn_shortcut_Q + attended + self.mlp(normed)
        return out


def _resize(module: Any, name: str, rows: int | None = None, columns: int | None = None) -> None:
    """Put a linear layer of another shape in the place of one that holds nothing yet."""
    old = getattr(module, name)
    shape = (columns or old.in_features, rows or old.out_features)
    setattr(module, name, nn.Linear(*shape, bias=old.bias is not None))


def _slice(model: Any, config: Any) -> None:
    """Make the dense model that transformers has set up the sliced one, before weights come."""
    widths, original = list(config.sliced_widths), config.hidden_size
    inner = model.model
    inner.embed_tokens = nn.Embedding(config.vocab_size, widths[0])
    for i, layer in enumerate(inner.layers):
        around = widths[2 * i : 2 * i + 3]
        inner.layers[i] = SlicedLayer(layer, around, original, config.rms_norm_eps)
    inner.norm = SlicedNorm(widths[-1], original, config.rms_norm_eps)
    model.lm_head = nn.Linear(widths[-1], config.vocab_size, bias=False)


class SlicedLlamaForCausalLM(LlamaForCausalLM):
    """Llama."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        _slice(self, config)


class SlicedMistralForCausalLM(MistralForCausalLM):
    """Mistral."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        _slice(self, config)


class SlicedQwen2ForCausalLM(Qwen2ForCausalLM):
    """Qwen2."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        _slice(self, config)


class SlicedQwen3ForCausalLM(Qwen3ForCausalLM):
    """Qwen3."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        _slice(self, config)


class SlicedOPTForCausalLM(OPTForCausalLM):
    """OPT."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        widths, original, eps = list(config.sliced_widths), config.hidden_size, config.rms_norm_eps
        inner: Any = self.model.decoder
        inner.embed_tokens = nn.Embedding(config.vocab_size, widths[0])
        positions = type(inner.embed_positions)
        inner.embed_positions = positions(config.max_position_embeddings, widths[0])
        for i, layer in enumerate(inner.layers):
            inner.layers[i] = SlicedOPTLayer(layer, widths[2 * i : 2 * i + 3], original, eps)
        inner.final_layer_norm = SlicedNorm(widths[-1], original, eps)
        self.lm_head = nn.Linear(widths[-1], config.vocab_size)


class SlicedPhiForCausalLM(PhiForCausalLM):
    """Phi-1 to Phi-2."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        widths, original, eps = list(config.sliced_widths), config.hidden_size, config.rms_norm_eps
        inner: Any = self.model
        inner.embed_tokens = nn.Embedding(config.vocab_size, widths[0])
        for i, layer in enumerate(inner.layers):
            inner.layers[i] = SlicedPhiLayer(layer, widths[i : i + 2], original, eps)
        inner.final_layernorm = SlicedNorm(widths[-1], original, eps)
        self.lm_head = nn.Linear(widths[-1], config.vocab_size)
