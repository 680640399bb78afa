"""The slice stage: a checkpoint in, the folder of a narrower one out."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from torch import Tensor

from edgepack.architectures._base import READ_BEHIND
from edgepack.cache import load_tensors, save_tensors
from edgepack.calibration.text import Tokens
from edgepack.checkpoint.save import save
from edgepack.decoder import Decoder
from edgepack.progress import Steps
from edgepack.recipe import Slice
from edgepack.slicing.basis import oriented, principal_directions
from edgepack.slicing.covariance import residual_covariance
from edgepack.slicing.globally import narrowed
from edgepack.slicing.sliced import Sliced

BASIS = "basis.safetensors"
"""Q ``[D, d]``, and the eigenvalues' share that it keeps."""


def slice_globally(sliced: Sliced, options: Slice, tokens: Tokens, folder: Path) -> Steps[None]:
    """Write the weights of `sliced` into `folder`, a Hugging Face folder."""
    dense = sliced.base
    if not (folder / BASIS).exists():
        C = yield from residual_covariance(Decoder(dense), tokens, folder, options.covariance)
        directions = principal_directions(C)
        width = sliced.dimensions.hidden_size
        Q = oriented(directions, width, options.orientation, options.seed)
        save_tensors(folder / BASIS, {"Q": Q.contiguous()}, {})
    for left in (*folder.glob("x-*"), *folder.glob("covariance-*")):
        left.unlink()
    Q = load_tensors(folder / BASIS)[0]["Q"]

    @cache
    def gain(name: str) -> Tensor:
        return dense.tensor(name)

    def load(name: str) -> Tensor:
        spec, architecture = sliced.specs[name], dense.architecture
        norm = READ_BEHIND.get(spec.role)
        source = name if name in dense.specs else architecture.hf_name("token_embd")
        gains = gain(architecture.hf_name(norm, spec.block)) if norm else None
        return narrowed(dense.tensor(source), spec.role, Q, gains)

    yield from save(sliced, load, folder, "slice")
