"""Sampling of the next token from logits, as in llama.cpp's chain of samplers."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from edgepack.runtimes.base import Sampling, check_numbers


class Sampler:
    """Draws tokens one after the other; the same seed draws the same ones."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling, self._random = sampling, np.random.default_rng(sampling.seed)

    def __call__(self, logits: NDArray[np.float32], recent: Collection[int]) -> int:
        """The next token, from logits ``[vocab]`` and the `recent` tokens, for the penalty."""
        sampling, logits = self.sampling, logits.astype(np.float64)
        check_numbers(logits)
        if recent and sampling.repeat_penalty != 1.0:
            seen = np.array(sorted(set(recent)))
            values = logits[seen]
            logits[seen] = np.where(
                values > 0, values / sampling.repeat_penalty, values * sampling.repeat_penalty
            )
        if sampling.temperature <= 0:
            return int(logits.argmax())
        likeliest = np.argsort(-logits, kind="stable")[: sampling.top_k]
        below = logits[likeliest] - logits[likeliest[0]]
        shares = np.exp(below) / np.exp(below).sum()
        kept = int(np.searchsorted(np.cumsum(shares), sampling.top_p)) + 1
        drawn = np.exp(below[:kept] / sampling.temperature)
        return int(likeliest[self._random.choice(len(drawn), p=drawn / drawn.sum())])
