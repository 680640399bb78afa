"""SliceGPT as published: a rotation at every place where the residual stream is read.

Ashkboos et al., arXiv 2401.15024, algorithm 1. Between two places the residual stream goes through
a shortcut matrix QᵀQ′. Each basis is computed from the outputs of the part of the model that is
already sliced, so that later bases take earlier errors into account.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from edgepack.calibration.sweep import embed_batches
from edgepack.checkpoint import Checkpoint
from edgepack.checkpoint.save import save
from edgepack.core.accelerator import CPU, precise
from edgepack.core.progress import Progress, Steps
from edgepack.core.weight_files import load_tensors, save_tensors
from edgepack.model.decoder import Decoder
from edgepack.model.places import kept_widths, places
from edgepack.model.rewritten import untied_name
from edgepack.model.sliced import Sliced
from edgepack.model.stream import Activations, Batch, Tokens, micro_batches
from edgepack.recipe.sections import Slice
from edgepack.slicing.basis import orient, principal_directions
from edgepack.slicing.covariance import add, no_covariance
from edgepack.slicing.weights import rotate_weight


def find_bases(
    dense: Checkpoint,
    widths: tuple[int, ...],
    options: Slice,
    tokens: Tokens,
    folder: Path,
    device: torch.device = CPU,
) -> Steps[None]:
    """Write Q ``[hidden, widths[k]]`` of every place k into `folder`. Memory holds half a block and
    the moments of its output. A killed run resumes at the place where it stopped."""
    batches = [batch for batch in micro_batches(tokens) if not batch.held_out]
    hidden = dense.dimensions.hidden_size
    signals = [
        Activations(folder / f"x-{k}", (*tokens.train.shape, hidden)) for k in range(len(widths))
    ]
    for k, width in enumerate(widths):
        if _file(folder, k).exists():
            continue
        yield Progress("slice", k, 2 * len(widths), f"directions at place {k} of {len(widths)}")
        C = no_covariance(hidden, device)
        if k:
            Q = basis(folder, k - 1)
            parts = _half(dense, k - 1, Q, signals[k - 1], batches, device)
        else:
            parts = embed_batches(Decoder(dense, device=device), tokens.train, batches)
        signals[k].write(add(C, part, options.covariance or "raw") for part in parts)
        directions = principal_directions(C).cpu()
        Q = orient(directions, width, options.orientation, options.seed + k)
        save_tensors(_file(folder, k), {"Q": Q.contiguous()}, {})
        if k:
            signals[k - 1].path.unlink(missing_ok=True)


def basis(folder: Path, k: int) -> Tensor:
    """Q of place k, float64."""
    return load_tensors(_file(folder, k))[0]["Q"]


def _file(folder: Path, k: int) -> Path:
    return folder / f"basis-{k:05d}"


def _half(
    dense: Checkpoint,
    k: int,
    Q: Tensor,
    x: Activations,
    batches: list[Batch],
    device: torch.device,
) -> Iterator[Tensor]:
    """Outputs of half a block (or of a whole one, if its parts are parallel) for the signals at
    place k in the basis Q, in all columns of the hidden size."""
    family = dense.architecture
    where = places(family)
    index, half = divmod(k, where.count)
    block, Q = Decoder(dense, device=precise(device)).block(index), Q.to(precise(device))
    roles = [role for role in block.weights if where.read.get(role.partition(".")[0]) == half]
    gains = {role: block.weights.get(family.read_behind.get(role, "")) for role in roles}
    read = {role: rotate_weight(block.weights[role], role, Q, gain) for role, gain in gains.items()}
    shortcut = next(role for role, ends in where.shortcuts.items() if ends[0] == half)
    block = replace(block, weights={**block.weights, **read, shortcut: Q.T.float()}).to(device)
    narrow = Q.float().to(device)
    through = block if family.parallel else (block.attend, block.feed)[half]
    for batch in batches:
        yield through(x.read(batch.rows).to(device) @ narrow)


def weight(dense: Checkpoint, folder: Path, name: str, role: str, index: int | None) -> Tensor:
    """A weight of the sliced model, float32, from the dense model and the bases in `folder`."""
    family, at = dense.architecture, partial(basis, folder)
    known = places(family)
    if role in known.shortcuts and index is not None:
        start, end = (at(known.count * index + offset) for offset in known.shortcuts[role])
        return (start.T @ end).float()
    where = known.place_of(role, index, dense.dimensions.num_hidden_layers)
    if where is None:
        return dense.tensor(name)
    norm = family.read_behind.get(role)
    gain = dense.tensor(family.hf_name(norm, index)) if norm else None
    return rotate_weight(dense.tensor(untied_name(dense, name)), role, at(where), gain)


def slice_per_block(
    sliced: Sliced, options: Slice, tokens: Tokens, folder: Path, device: torch.device = CPU
) -> Steps[None]:
    """Compute a basis for every place, and write the weights of `sliced` in them."""
    dense = sliced.base
    yield from find_bases(dense, kept_widths(dense, options), options, tokens, folder, device)

    def load(name: str) -> Tensor:
        spec = sliced.specs[name]
        return weight(dense, folder, name, spec.role, spec.block)

    yield from save(sliced, load, folder, "slice")
