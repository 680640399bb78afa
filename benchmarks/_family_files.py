"""edgepack's side of `benchmarks.families`: logits of our forward pass, and a float32 GGUF."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from edgepack.checkpoint import open_checkpoint
from edgepack.core import plugins
from edgepack.errors import EdgepackError
from edgepack.export.gguf import write_model
from edgepack.export.values import F32
from edgepack.model.decoder import Decoder
from tests.support.families import Variant

__all__ = ["EdgepackError", "known", "our_logits", "write"]


def known(variant: Variant) -> bool:
    """Whether edgepack has the family."""
    return variant.family in plugins.names("architectures")


@torch.no_grad()
def our_logits(folder: Path, tokens: list[int]) -> np.ndarray:
    """``[time, vocab]``."""
    return Decoder(open_checkpoint(str(folder))).logits(torch.tensor([tokens]))[0].numpy()


def write(path: Path, folder: Path) -> None:
    """A GGUF with everything in float32."""
    checkpoint = open_checkpoint(str(folder))
    formats = {s.name: F32 for s in checkpoint.specs.values() if len(s.shape) > 1}
    write_model(path, checkpoint, formats, checkpoint.tensor)
