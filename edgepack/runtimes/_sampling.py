"""Drawing the next token from logits, as llama.cpp's chain of samplers does."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from edgepack.runtimes.base import Sampling, check_numbers


class Sampler:
    """Draws tokens one after the other; the same seed draws the same ones."""

    def __init__(self, how: Sampling) -> None:
        self.how, self._random = how, np.random.default_rng(how.seed)

    def __call__(self, logits: NDArray[np.float32], said: Collection[int]) -> int:
        """The next token, from logits ``[vocab]`` and what was `said` lately."""
        how, logits = self.how, logits.astype(np.float64)
        check_numbers(logits)
        if said and how.repeat_penalty != 1.0:
            seen = np.array(sorted(set(said)))
            values = logits[seen]
            logits[seen] = np.where(
                values > 0, values / how.repeat_penalty, values * how.repeat_penalty
            )
        if how.temperature <= 0:
            return int(logits.argmax())
        likeliest = np.argsort(-logits, kind="stable")[: how.top_k]
        below = logits[likeliest] - logits[likeliest[0]]
        shares = np.exp(below) / np.exp(below).sum()
        kept = int(np.searchsorted(np.cumsum(shares), how.top_p)) + 1
        drawn = np.exp(below[:kept] / how.temperature)
        return int(likeliest[self._random.choice(len(drawn), p=drawn / drawn.sum())])
