"""One rotation for the whole model: the result is an ordinary checkpoint of its family."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from edgepack.checkpoint.save import save
from edgepack.core.accelerator import CPU, precise
from edgepack.core.progress import Steps
from edgepack.core.weight_files import load_tensors, save_tensors
from edgepack.model.decoder import Decoder
from edgepack.model.rewritten import untied_name
from edgepack.model.sliced import Sliced
from edgepack.model.stream import Tokens
from edgepack.recipe.sections import Slice
from edgepack.slicing.basis import orient, principal_directions
from edgepack.slicing.covariance import residual_covariance
from edgepack.slicing.weights import slice_weight

BASIS = "basis.safetensors"
"""Q ``[D, d]`` of the one rotation."""


def slice_globally(
    sliced: Sliced, options: Slice, tokens: Tokens, folder: Path, device: torch.device = CPU
) -> Steps[None]:
    """Compute the basis, and write the weights of `sliced` in it."""
    dense, where = sliced.base, precise(device)
    if not (folder / BASIS).exists():
        kind = options.covariance or "normalized"
        C = yield from residual_covariance(Decoder(dense, device=device), tokens, folder, kind)
        directions = principal_directions(C).cpu()
        width = sliced.dimensions.hidden_size
        Q = orient(directions, width, options.orientation, options.seed)
        save_tensors(folder / BASIS, {"Q": Q.contiguous()}, {})
    Q = load_tensors(folder / BASIS)[0]["Q"].to(where)

    @cache
    def gain(name: str) -> Tensor:
        return dense.tensor(name).to(where)

    def load(name: str) -> Tensor:
        spec, architecture = sliced.specs[name], dense.architecture
        norm = architecture.read_behind.get(spec.role)
        gains = gain(architecture.hf_name(norm, spec.block)) if norm else None
        W = dense.tensor(untied_name(dense, name)).to(where)
        return slice_weight(W, spec.role, Q, gains).cpu()

    yield from save(sliced, load, folder, "slice")
