"""Packed models and adapters for them, small enough to make in seconds."""

from __future__ import annotations

import torch
import transformers

import edgepack
from edgepack.adapters.adapter import Adapter, Lora
from edgepack.adapters.base import PackedBase
from tests.support.commands import write
from tests.support.tiny import TEXT, make_model

BLOCK = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def packed(folder, family="llama", target="gguf", **changes):
    """Build a random model in `folder`; the output folder. `changes` are sections of the recipe."""
    folder.mkdir(exist_ok=True)
    make_model(folder / family, family, intermediate=128)
    (folder / "text.txt").write_text("\n".join(TEXT * 30))
    recipe = write(folder / "recipe.yaml", model=family, **changes)
    out = folder / "packed"
    edgepack.build(recipe, target, out=out)
    return out


def random_adapter(base: PackedBase, rank=3, seed=0, size=0.3, names=BLOCK, **about):
    """An adapter of linear weights in the blocks, of ranks `rank` and, in block 1, `rank` + 1; ΔW
    has `size` times a weight's norm."""
    draw, weights = torch.Generator().manual_seed(seed), {}
    for name, spec in base.checkpoint.specs.items():
        if spec.block is None or name.split(".")[-2] not in names:
            continue
        out, columns = spec.shape
        r = rank + spec.block
        A = torch.randn(r, columns, generator=draw) / columns**0.5
        B = torch.randn(out, r, generator=draw)
        W = base.checkpoint.tensor(name)
        weights[name] = Lora(A, B * size * W.norm() / (B @ A).norm())
    return Adapter(weights, base.identity, about)


def changed_factors(base: PackedBase):
    """L', R' in place of L, R of two weights: an adapter of rank 2r."""
    weights = {}
    for name in list(base.ranks)[:2]:
        L, R = (part.dequantize() for part in base.pair(name))
        new = Lora(R * 1.5, L + 0.05)
        weights[name] = Lora.joined([new, Lora(R, -L)])
    return Adapter(weights, base.identity, {"mode": "factors"})


@torch.no_grad()
def expected(base: PackedBase, tokens, deltas=(), factors=True):
    """transformers' logits of Q + L·R + Σ scale·ΔW; `deltas` are (adapter, scale)."""
    folder = next(
        p.parent for p in base.folder.parent.glob("*/config.json") if p.parent != base.folder
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).float()
    for name, value in model.named_parameters():
        weight = base.weight(name) if factors and name in base.matrices else None
        value.copy_(weight.dense() if weight else base.checkpoint.tensor(name))
        for adapter, scale in deltas:
            if name in adapter.weights:
                value += scale * adapter.weights[name].delta()
    return model(torch.tensor([tokens])).logits[0].numpy()
