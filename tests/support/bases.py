"""Packed bases of random models for training, without a build."""

from __future__ import annotations

import torch
from torch.nn import functional

from edgepack.adapters.base import PackedBase
from edgepack.checkpoint import open_checkpoint
from edgepack.core import plugins
from edgepack.core.disk import sha256
from edgepack.core.weights import WeightFormat
from edgepack.export.gguf import write_factors, write_model
from edgepack.finetune.examples import IGNORED, Example
from edgepack.model.decoder import Decoder
from tests.support.graphs import rounded, write
from tests.support.tiny import make_model

WORDS = 300
"""Token ids below this are used."""


def packed_base(folder, family="llama", target="gguf", form="q4_0", rank=4, factors="f16", **given):
    """(base, its packed weights) of a random model."""
    tied = family != "phi" and plugins.find("architectures", family).head != "untied"
    given = {"hidden": 64, "intermediate": 96, "tied": tied} | given
    make_model(folder / "m", family, dtype=torch.float16, **given)
    checkpoint = open_checkpoint(str(folder / "m"))
    weights = rounded(checkpoint, form, rank=rank, factors=factors)
    out = folder / "out"
    if target == "onnx":
        write(out, checkpoint, weights)
        files = ["onnx/model_q4.onnx"]
    else:
        out.mkdir()
        formats = {name: weight.Q.format for name, weight in weights.items()}
        write_model(out / "base.gguf", checkpoint, formats, lambda name: weights[name].Q)
        ranked = {
            name: WeightFormat(w.Q.format, w.rank, w.L.format, w.R.format)
            for name, w in weights.items()
            if w.rank
        }
        files = ["base.gguf"]
        if ranked:
            write_factors(out / "factors.gguf", checkpoint, ranked, weights.__getitem__)
            files.append("factors.gguf")
    found = {name: sha256(out / name) for name in files if (out / name).exists()}
    return PackedBase(out, "tiny", target, found), weights


def random_examples(lengths=(16, 11, 14), seed=0):
    """Random tokens; the first few of each are not learnt."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for index, length in enumerate(lengths):
        ids = torch.randint(0, WORDS, (length,), generator=draw)
        labels = torch.randint(0, WORDS, (length,), generator=draw)
        labels[: index + 2] = IGNORED
        found.append(Example(ids, labels))
    return found


class Dense:
    """The dequantized model in PyTorch, every weight Q + Σ scale·B·A of `pairs_of`: what training
    on packed weights is compared with."""

    def __init__(self, base, weights, pairs_of):
        self.leaves = {}

        def dense(name):
            W = weights[name].Q.dequantize()
            for pair in pairs_of(name):
                A, B = pair.A.detach(), pair.B.detach()
                if pair.A.requires_grad:
                    A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
                    self.leaves[name] = (A, B)
                W = W + pair.scale * B @ A
            return W

        replaced = {name: (lambda name=name: dense(name)) for name in weights}
        self.decoder = Decoder(base.checkpoint, replaced)

    def loss(self, examples):
        """Σ cross-entropy over the learnt tokens, one example at a time."""
        total = torch.zeros(())
        for example in examples:
            logits = self.decoder.logits(example.ids[None])[0]
            total = total + functional.cross_entropy(
                logits, example.labels, ignore_index=IGNORED, reduction="sum"
            )
        return total

    def gradients(self, examples):
        """(loss, weight → (at A, at B)); every example computes the weights anew."""
        found = {}
        total = 0.0
        for example in examples:
            self.leaves = {}
            loss = self.loss([example])
            loss.backward()
            total += loss.item()
            for name, (A, B) in self.leaves.items():
                before = found.get(name, (0, 0))
                found[name] = (before[0] + A.grad, before[1] + B.grad)
        return total, found
