"""A LayerNorm model as an RMSNorm model, exactly (SliceGPT, section 3.3).

LayerNorm subtracts the mean over the coordinates. If every weight that writes the residual stream
is made to write mean 0, nothing is subtracted, and LayerNorm equals RMSNorm. Its gains γ and biases
β are merged into the weights that read after it: W·diag(γ), b + W·β.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from edgepack.architectures.base import NORMS, START, WRITE
from edgepack.checkpoint import Checkpoint
from edgepack.model.rewritten import Rewritten, untied_name, untied_specs


def center(checkpoint: Checkpoint) -> Checkpoint:
    """The model with RMSNorms in place of LayerNorms; `checkpoint` itself if it has none."""
    family = checkpoint.architecture
    biased = any(f"{norm}.bias" in {**family.block, **family.outside} for norm in NORMS)
    return Centered(checkpoint) if biased else checkpoint


class Centered(Rewritten):
    """`base` with RMSNorms of gain 1, and biases on all weights that read; its head is untied."""

    def __init__(self, base: Checkpoint) -> None:
        family, specs = base.architecture, {}
        dropped = {f"{norm}.bias" for norm in NORMS}
        for spec in untied_specs(base):
            if spec.role not in dropped:
                specs[spec.name] = spec
        weights = [spec for spec in specs.values() if spec.role in family.read_behind]
        for spec in weights:
            role, name = f"{spec.role}.bias", spec.name.removesuffix("weight") + "bias"
            specs[name] = replace(spec, name=name, role=role, shape=spec.shape[:1])
        dimensions = replace(base.dimensions, tie_word_embeddings=False)
        super().__init__(base, dimensions, specs, {"norms": "rms"})
        self.architecture = replace(
            family,
            block={r: n for r, n in family.block.items() if r not in dropped},
            outside={**{r: n for r, n in family.outside.items() if r not in dropped}, **HEAD_BIAS},
        )

    def tensor(self, name: str) -> Tensor:  # noqa: D102
        spec = self.specs[name]
        stem, _, kind = spec.role.partition(".")
        if stem in NORMS:
            return torch.ones(spec.shape)
        if stem in WRITE or stem in START:
            value = self.base.tensor(name).double()
            return (value - value.mean(-1 if stem in START else 0, keepdim=True)).float()
        if stem not in self.architecture.read_behind:
            return self.base.tensor(name)
        matrix = name.removesuffix(kind or "weight") + "weight"
        W = self.base.tensor(untied_name(self.base, matrix)).double()
        gain, shift = self._norm(stem, spec.block)
        if kind != "bias":
            return (W * gain).float()
        own = self.base.tensor(name).double() if name in self.base.specs else 0.0
        return (own + W @ shift).float()

    def _norm(self, stem: str, block: int | None) -> tuple[Tensor, Tensor]:
        """γ and β of the norm that a weight reads after."""
        family = self.base.architecture
        norm = self.architecture.read_behind[stem]
        gain, shift = (family.hf_name(role, block) for role in (norm, f"{norm}.bias"))
        return self.base.tensor(gain).double(), self.base.tensor(shift).double()


HEAD_BIAS = {"output.bias": "lm_head.bias"}
