"""Training graphs of random models, and the same training in PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from edgepack.checkpoint import open_checkpoint
from edgepack.core.progress import finish
from edgepack.model.decoder import Decoder
from tests.support.graphs import rounded, write
from tests.support.tiny import make_model

WORDS = 300
"""Token ids below this are used."""


def packed(folder, family="llama", form="q4_0", rank=4, factors="f16", **given):
    """(checkpoint, its packed weights) of a random model; the ONNX folder is ``folder/out``."""
    given = {"hidden": 64, "intermediate": 96, "tied": family != "phi"} | given
    make_model(folder / "m", family, dtype=torch.float16, **given)
    checkpoint = open_checkpoint(str(folder / "m"))
    weights = rounded(checkpoint, form, rank=rank, factors=factors)
    write(folder / "out", checkpoint, weights)
    return checkpoint, weights


def rows(count=4, length=16, seed=0):
    """Random texts of several lengths; some tokens do not count."""
    draw = np.random.default_rng(seed)
    found = []
    for index in range(count):
        ids = draw.integers(0, WORDS, length - index % 3).tolist()
        labels = draw.integers(0, WORDS, len(ids))
        labels[: index + 1] = -100
        found.append((ids, labels.tolist()))
    return found


class Reference:
    """The dequantized model in PyTorch with trained matrices, which begin as `theta`."""

    def __init__(self, checkpoint, weights, mode, parameters, theta):
        self.values = {
            (p.weight, p.part): torch.tensor(
                theta[p.offset : p.stop].reshape(p.shape).T.copy(), requires_grad=True
            )
            for p in parameters
        }
        self.parameters = parameters

        def dense(name):
            weight = weights[name]
            trained = (name, "L") in self.values
            base = weight.dense() if mode == "stack" or not trained else weight.Q.dequantize()
            return base + self.values[name, "L"] @ self.values[name, "R"] if trained else base

        replaced = {name: (lambda name=name: dense(name)) for name in weights}
        self.decoder = Decoder(checkpoint, replaced)

    def loss(self, batch):
        """Mean cross-entropy over all labels that count."""
        width = max(len(ids) for ids, _ in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        labels = torch.full((len(batch), width), -100)
        for index, (tokens, wanted) in enumerate(batch):
            ids[index, : len(tokens)] = torch.tensor(tokens)
            labels[index, : len(wanted)] = torch.tensor(wanted)
        logits = self.decoder.logits(ids).flatten(0, 1)
        return functional.cross_entropy(logits, labels.flatten(), ignore_index=-100)

    def gradient(self, batch):
        """(loss, flat gradient in the order of theta)."""
        loss = self.loss(batch)
        loss.backward()
        parts = [self.values[p.weight, p.part].grad.T.numpy().ravel() for p in self.parameters]
        return loss.item(), np.concatenate(parts)


def drain(steps):
    """The result of a generator of progress."""
    return finish(steps)
