"""One rotation for the whole model: the result is an ordinary checkpoint of its family."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from torch import Tensor

from edgepack.checkpoint.save import save
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


def slice_globally(sliced: Sliced, options: Slice, tokens: Tokens, folder: Path) -> Steps[None]:
    """Compute the basis, and write the weights of `sliced` in it."""
    dense = sliced.base
    if not (folder / BASIS).exists():
        kind = options.covariance or "normalized"
        C = yield from residual_covariance(Decoder(dense), tokens, folder, kind)
        directions = principal_directions(C)
        width = sliced.dimensions.hidden_size
        Q = orient(directions, width, options.orientation, options.seed)
        save_tensors(folder / BASIS, {"Q": Q.contiguous()}, {})
    Q = load_tensors(folder / BASIS)[0]["Q"]

    @cache
    def gain(name: str) -> Tensor:
        return dense.tensor(name)

    def load(name: str) -> Tensor:
        spec, architecture = sliced.specs[name], dense.architecture
        norm = architecture.read_behind.get(spec.role)
        gains = gain(architecture.hf_name(norm, spec.block)) if norm else None
        return slice_weight(dense.tensor(untied_name(dense, name)), spec.role, Q, gains)

    yield from save(sliced, load, folder, "slice")
