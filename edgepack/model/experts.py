"""Mixtures of experts: every token is computed by the few of a block's MLPs that a router names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edgepack.architectures.base import Router
from edgepack.checkpoint.base import Dimensions
from edgepack.core.parts import part_name

Linear = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class Routing:
    """The experts of every token, `chosen` ``[tokens, used]``, and the weights of their outputs,
    `weights` ``[tokens, used]``."""

    chosen: Tensor
    weights: Tensor


def route(weights: Mapping[str, Tensor], router: Router, d: Dimensions, h: Tensor) -> Routing:
    """The experts for hidden states h ``[…, hidden]``, and what their outputs count.

    Sources: ``Qwen3MoeTopKRouter`` and ``Lfm2MoeTopKRouter`` in transformers.
    """
    logits = functional.linear(h.flatten(0, -2), weights["ffn_gate_inp"])
    scores = logits.softmax(-1) if router.scores == "softmax" else logits.sigmoid()
    ranked = scores.detach()
    if "exp_probs_b.bias" in weights:  # it only moves the choice
        ranked = ranked + weights["exp_probs_b.bias"]
    chosen = ranked.topk(d.num_experts_per_tok, dim=-1).indices
    found = scores.gather(-1, chosen)
    return Routing(chosen, found / (found.sum(-1, keepdim=True) + router.eps))


def mixture(routing: Routing, h: Tensor, linear: Linear, act: Callable[[Tensor], Tensor]) -> Tensor:
    """Σ weight · W_down(act(W_gate h) ∘ W_up h) over the experts of each token; h ``[…, hidden]``,
    the output too. Experts that get no token are not asked."""
    tokens = h.flatten(0, -2)
    out = torch.zeros_like(tokens)
    for expert in torch.unique(routing.chosen).tolist():
        token, place = torch.where(routing.chosen == expert)
        x = tokens[token]
        inner = act(linear(part_name("ffn_gate_exps", expert), x)) * linear(
            part_name("ffn_up_exps", expert), x
        )
        y = linear(part_name("ffn_down_exps", expert), inner)
        out = out.index_add(0, token, y * routing.weights[token, place, None])
    return out.view_as(h)
