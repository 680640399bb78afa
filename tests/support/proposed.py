"""Types that are only proposed for llama.cpp, computed value by value: the loops of
``dequantize_row_iq2_nl`` and ``dequantize_row_iq3_nl`` in pull request 27322."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

IQ2 = (-127, -49, 9, 88)
IQ3 = (-127, -78, -45, -18, 3, 30, 62, 107)
TYPES = {"iq2_nl": 10, "iq3_nl": 14}
"""Name → bytes of a block of 32 columns."""


def dequantize(name: str, data: Tensor) -> Tensor:
    """float32 ``[rows, columns]`` of GGUF bytes ``[rows, bytes]``."""
    rows = data.numpy().reshape(len(data), -1, TYPES[name])
    one = {"iq2_nl": _iq2, "iq3_nl": _iq3}[name]
    return torch.from_numpy(np.stack([np.concatenate([one(b) for b in row]) for row in rows]))


def _iq2(block: np.ndarray) -> np.ndarray:
    d, qs = _scale(block), block[2:]
    return np.array([d * np.float32(IQ2[qs[j] >> 2 * g & 3]) for g in range(4) for j in range(8)])


def _iq3(block: np.ndarray) -> np.ndarray:
    d, high, low = _scale(block), block[2:6], block[6:]
    places = [(g, j) for g in range(4) for j in range(8)]
    index = [(low[j] >> 2 * g & 3) | (high[g] >> j & 1) << 2 for g, j in places]
    return np.array([d * np.float32(IQ3[i]) for i in index])


def _scale(block: np.ndarray) -> np.float32:
    return np.float32(block[:2].view(np.float16)[0])
