"""C = Σ x xᵀ of the residual stream at every norm, over all blocks, with one block in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from edgepack.calibration.sweep import embed_batches
from edgepack.core.accelerator import precise, wide
from edgepack.core.progress import Progress, Steps
from edgepack.core.weight_files import load_tensors, save_tensors
from edgepack.model.block import rms_norm
from edgepack.model.decoder import Decoder
from edgepack.model.stream import Tokens, micro_batches, states
from edgepack.recipe.sections import Covariance

_ROWS = 2048  # tokens at once in float64


def residual_covariance(
    decoder: Decoder, tokens: Tokens, folder: Path, kind: Covariance
) -> Steps[Tensor]:
    """C ``[hidden, hidden]`` float64, summed over the inputs of every norm (two a block, and the
    final one) and every training token, each of weight one.

    ``normalized`` sums x / RMS(x), the input of the weights; ``raw`` sums x itself, where a few
    tokens with enormous values dominate. One pass; a killed run resumes after its last whole block.
    """
    blocks, batches = decoder.dimensions.num_hidden_layers, micro_batches(tokens)
    batches = [batch for batch in batches if not batch.held_out]
    hidden = decoder.dimensions.hidden_size
    stream = states(decoder, tokens.train, folder, "x")
    sums = [folder / f"covariance-{i}" for i in range(blocks + 1)]
    reached = max((i for i in range(blocks + 1) if sums[i].exists()), default=None)
    if reached is None:
        stream[0].write(embed_batches(decoder, tokens.train, batches))
        C = no_covariance(hidden, decoder.device)
        save_tensors(sums[0], {"C": C}, {})
        reached = 0
    C = load_tensors(sums[reached])[0]["C"].to(precise(decoder.device))
    for i in range(reached, blocks):
        yield Progress("slice", i, 2 * blocks, f"covariance in block {i}")
        block = decoder.block(i)

        def through(x: Tensor, i: int = i) -> Tensor:
            h = block.attend(add(C, x, kind))  # noqa: B023
            return block.feed(add(C, h, kind))  # noqa: B023

        read = (stream[i].read(batch.rows).to(decoder.device) for batch in batches)
        stream[i + 1].write(map(through, read))
        save_tensors(sums[i + 1], {"C": C}, {})
        stream[i].path.unlink(missing_ok=True)
        sums[i].unlink(missing_ok=True)
    for batch in batches:
        add(C, stream[blocks].read(batch.rows).to(decoder.device), kind)
    return C


def no_covariance(hidden: int, device: torch.device) -> Tensor:
    """The sum of nothing, for states on a device."""
    return torch.zeros(hidden, hidden, dtype=torch.float64, device=precise(device))


def add(C: Tensor, x: Tensor, kind: Covariance) -> Tensor:
    """C += Σ x xᵀ over tokens ``[…, hidden]``, in float64; returns x."""
    for part in torch.split(x.flatten(0, -2), _ROWS):
        rows = wide(part)
        if kind == "normalized":
            rows = rms_norm(rows, rows.new_ones(rows.shape[-1]), 1e-12)
        C.addmm_(rows.T, rows)
    return x
