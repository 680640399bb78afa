"""The slice stage: a checkpoint in, the folder of a narrower one out."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from torch import Tensor

from edgepack.checkpoint.save import is_saved, save
from edgepack.core.progress import Steps
from edgepack.core.weight_files import load_tensors, save_tensors
from edgepack.model.decoder import Decoder
from edgepack.model.places import kept_widths
from edgepack.model.rewritten import untied_name
from edgepack.model.sliced import Sliced
from edgepack.model.stream import Tokens
from edgepack.recipe.sections import Slice
from edgepack.slicing.basis import oriented, principal_directions
from edgepack.slicing.covariance import residual_covariance
from edgepack.slicing.per_block import find_bases, weight
from edgepack.slicing.weights import narrowed

BASIS = "basis.safetensors"
"""Q ``[D, d]`` of the one rotation."""


def run(sliced: Sliced, options: Slice, tokens: Tokens, folder: Path) -> Steps[None]:
    """Write `sliced` into `folder`, a Hugging Face folder."""
    if not is_saved(folder):
        stage = _globally if options.method == "global" else _per_block
        yield from stage(sliced, options, tokens, folder)
    for pattern in ("x-*", "covariance-*", "basis-*"):  # what only a run that goes on needs
        for path in folder.glob(pattern):
            path.unlink()


def _per_block(sliced: Sliced, options: Slice, tokens: Tokens, folder: Path) -> Steps[None]:
    dense = sliced.base
    widths = kept_widths(dense, options)
    yield from find_bases(dense, widths, options, tokens, folder)

    def load(name: str) -> Tensor:
        spec = sliced.specs[name]
        return weight(dense, folder, name, spec.role, spec.block)

    yield from save(sliced, load, folder, "slice")


def _globally(sliced: Sliced, options: Slice, tokens: Tokens, folder: Path) -> Steps[None]:
    dense = sliced.base
    if not (folder / BASIS).exists():
        kind = options.covariance or "normalized"
        C = yield from residual_covariance(Decoder(dense), tokens, folder, kind)
        directions = principal_directions(C)
        width = sliced.dimensions.hidden_size
        Q = oriented(directions, width, options.orientation, options.seed)
        save_tensors(folder / BASIS, {"Q": Q.contiguous()}, {})
    Q = load_tensors(folder / BASIS)[0]["Q"]

    @cache
    def gain(name: str) -> Tensor:
        return dense.tensor(name)

    def load(name: str) -> Tensor:
        spec, architecture = sliced.specs[name], dense.architecture
        norm = architecture.read_behind.get(spec.role)
        gains = gain(architecture.hf_name(norm, spec.block)) if norm else None
        return narrowed(dense.tensor(untied_name(dense, name)), spec.role, Q, gains)

    yield from save(sliced, load, folder, "slice")
