"""The text that predictions are measured on, or tokens held out from calibration."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgepack.metrics.divergence import chunk
from edgepack.runtimes.base import Scorer

HELD_OUT = "held-out calibration text"


@dataclass(frozen=True)
class Text:
    """A text to predict, or tokens ``[n, length]`` held out from calibration."""

    name: str
    content: str | Tensor

    @property
    def digest(self) -> str:
        """sha256 of the text or of the tokens."""
        content = self.content
        data = content.encode() if isinstance(content, str) else content.numpy().tobytes()
        return hashlib.sha256(data).hexdigest()

    def chunks(self, runtime: Scorer, context: int, tokens: int) -> NDArray[np.int64]:
        """About `tokens` tokens of it, ``[n, context]``."""
        limit = -(-tokens // context)
        if isinstance(self.content, str):
            return chunk(runtime, self.content, context, limit)
        return _held_out(self.content, runtime, context, limit)


def _held_out(tokens: Tensor, runtime: Scorer, context: int, limit: int) -> NDArray[np.int64]:
    """The held-out calibration tokens, cut into chunks as in `chunk`."""
    flat = tokens.flatten().numpy()
    context = min(context, len(flat))
    chunks = flat[: len(flat) // context * context].reshape(-1, context)[:limit].copy()
    if runtime.bos is not None:
        chunks[:, 0] = runtime.bos
    return chunks
