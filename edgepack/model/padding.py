"""Zero-pad every width to a multiple, so that formats with blocks of that many columns fit.

Padding is exact. With n of n′ coordinates in use, the mean square in RMSNorm shrinks by n/n′, so ε
becomes ε·n/n′ and the gains become γ·√(n/n′), or 0 for the new coordinates. New heads in a group of
query heads, and new groups, have columns of 0 in the output projection.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from edgepack.architectures.base import BEHIND, NORMS, Architecture
from edgepack.checkpoint import Checkpoint, Dimensions
from edgepack.checkpoint._layout import shape_words, sizes
from edgepack.errors import RecipeError
from edgepack.model._plain import refuse_other_streams
from edgepack.model.rewritten import Rewritten

PARTS = {"qkv": ("q", "kv", "kv"), "gate_up": ("ffn", "ffn"), "bcx": ("hidden",) * 3}
"""Widths that are several others, one behind another."""


def pad(checkpoint: Checkpoint, multiple: int) -> Checkpoint:
    """The model with all widths a multiple of `multiple`; `checkpoint` itself if they are so."""
    refuse_other_streams(checkpoint, "compress.pad_width")
    if reason := why_not(checkpoint.architecture):
        hint = "remove compress.pad_width, and use formats whose blocks divide the widths"
        raise RecipeError(f"compress.pad_width: {reason}", hint=hint)
    wider = _wider(checkpoint.dimensions, multiple, square_q=checkpoint.architecture.square_q)
    return checkpoint if wider == checkpoint.dimensions else Padded(checkpoint, wider, multiple)


def why_not(family: Architecture) -> str | None:
    """Why models of a family cannot be padded: their computation depends on a width in another way
    than through norms over the stream. None if they can."""
    reasons = {
        "have experts, whose widths are not padded": family.router is not None,
        "have gated queries, whose widths are not padded": family.gated_queries,
        "scale embeddings by their width, which zeros would change": any(
            number.rule == "root" for number in family.numbers.values()
        ),
        "norm all heads together, which zeros would change": "attn_q_norm" in family.shapes,
    }
    what = next((reason for reason, holds in reasons.items() if holds), None)
    return what and f"{family.name} models {what}"


def _wider(d: Dimensions, multiple: int, *, square_q: bool) -> Dimensions:
    """The smallest dimensions that fit: hidden and inner width, heads (groups only if needed)."""
    hidden, inner = (-(-n // multiple) * multiple for n in (d.hidden_size, d.intermediate_size))
    step = multiple // math.gcd(multiple, d.head_dim)
    kv, groups = d.num_key_value_heads, d.num_attention_heads // d.num_key_value_heads
    heads, kv_heads = min(
        (k * g, k)
        for k in range(kv, kv + step)
        for g in range(groups, groups + step)
        if k * g % step == 0
    )
    hidden = heads * d.head_dim if square_q else hidden
    return replace(
        d,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=d.rms_norm_eps * d.hidden_size / hidden,
    )


class Padded(Rewritten):
    """A checkpoint with zeros around its weights."""

    def __init__(self, original: Checkpoint, wider: Dimensions, multiple: int) -> None:
        self._words = sizes(original.architecture, wider)
        specs = {
            name: replace(spec, shape=self._shape(original, spec.role))
            for name, spec in original.specs.items()
        }
        super().__init__(original, wider, specs, {"pad_width": multiple})

    def _shape(self, original: Checkpoint, role: str) -> tuple[int, ...]:
        return tuple(self._words[word] for word in shape_words(original.architecture, role))

    def tensor(self, name: str) -> Tensor:  # noqa: D102
        spec, value = self.specs[name], self.base.tensor(name)
        if spec.role in (*NORMS, *BEHIND.values()):
            value = value * math.sqrt(len(value) / spec.shape[0])
        places = [self._places(word) for word in shape_words(self.architecture, spec.role)]
        out = torch.zeros(spec.shape)
        out[torch.meshgrid(*places, indexing="ij")] = value
        return out

    def _places(self, word: str) -> Tensor:
        """Indices of the original's coordinates of a width among the padded ones."""
        old, new = self.base.dimensions, self.dimensions
        if word in PARTS:
            widths = [self._words[part] for part in PARTS[word]]
            starts = (sum(widths[:i]) for i in range(len(widths)))
            places = (self._places(p) + s for p, s in zip(PARTS[word], starts, strict=True))
            return torch.cat(list(places))
        if word not in ("q", "q_gated"):
            return torch.arange(sizes(self.architecture, old)[word])
        groups = [d.num_attention_heads // d.num_key_value_heads for d in (old, new)]
        head = torch.arange(old.num_attention_heads)
        moved = head // groups[0] * groups[1] + head % groups[0]
        rows = (2 if word == "q_gated" else 1) * old.head_dim
        return (moved[:, None] * rows + torch.arange(rows)).flatten()

    def describe(self) -> str:
        """The dimensions that grew, in one line."""
        old, new = self.base.dimensions, self.dimensions
        grown = [
            f"{what} {getattr(old, name)} → {getattr(new, name)}"
            for what, name in (
                ("hidden width", "hidden_size"),
                ("inner width", "intermediate_size"),
                ("heads", "num_attention_heads"),
                ("heads of keys and values", "num_key_value_heads"),
            )
            if getattr(old, name) != getattr(new, name)
        ]
        before, after = (sum(s.numel for s in c.specs.values()) for c in (self.base, self))
        return f"{', '.join(grown)}: {100 * (after / before - 1):.0f} % more weights to store"
