"""C = Σ x xᵀ of the residual stream where it is read, over all blocks, with one block in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from edgepack.cache import load_tensors, save_tensors
from edgepack.calibration.sweep import Activations, micro_batches
from edgepack.calibration.text import Tokens
from edgepack.decoder import Decoder, rms_norm
from edgepack.progress import Progress, Steps
from edgepack.recipe import Covariance

_ROWS = 2048  # tokens at once in float64


def residual_covariance(
    decoder: Decoder, tokens: Tokens, folder: Path, kind: Covariance
) -> Steps[Tensor]:
    """C ``[hidden, hidden]`` float64, summed over the inputs of every norm (two a block, and the
    final one) and every training token, each of weight one.

    ``normalized``: of x / RMS(x), what the weights read; ``raw``: of x itself, which a few
    enormous tokens then decide. One pass; a killed run goes on after its last whole block.
    """
    blocks, batches = decoder.dimensions.num_hidden_layers, micro_batches(tokens)
    batches = [batch for batch in batches if not batch.held_out]
    shape = (*tokens.train.shape, decoder.dimensions.hidden_size)
    states = [Activations(folder / f"x-{i}", shape) for i in range(blocks + 1)]
    sums = [folder / f"covariance-{i}" for i in range(blocks + 1)]
    reached = max((i for i in range(blocks + 1) if sums[i].exists()), default=None)
    if reached is None:
        embedding = decoder.embedding()
        states[0].write(embedding[tokens.train[batch.rows]] for batch in batches)
        del embedding
        C = torch.zeros(shape[-1], shape[-1], dtype=torch.float64)
        save_tensors(sums[0], {"C": C}, {})
        reached = 0
    C = load_tensors(sums[reached])[0]["C"]
    for i in range(reached, blocks):
        yield Progress("slice", i, 2 * blocks, f"covariance in block {i}")
        block = decoder.block(i)

        def through(x: Tensor, i: int = i) -> Tensor:
            h = block.attend(add(C, x, kind))  # noqa: B023
            return block.feed(add(C, h, kind))  # noqa: B023

        states[i + 1].write(through(states[i].read(batch.rows)) for batch in batches)
        save_tensors(sums[i + 1], {"C": C}, {})
        states[i].path.unlink(missing_ok=True)
        sums[i].unlink(missing_ok=True)
    for batch in batches:
        add(C, states[blocks].read(batch.rows), kind)
    return C


def add(C: Tensor, x: Tensor, kind: Covariance) -> Tensor:
    """C += Σ x xᵀ over tokens ``[…, hidden]``, in float64; returns x."""
    for part in torch.split(x.flatten(0, -2), _ROWS):
        rows = part.double()
        if kind == "normalized":
            rows = rms_norm(rows, torch.ones(rows.shape[-1], dtype=rows.dtype), 1e-12)
        C.addmm_(rows.T, rows)
    return x
