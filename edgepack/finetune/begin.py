"""How a stacked adapter begins where it does not begin at zero: PiSSA, or EoRA's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from edgepack.adapters.adapter import Lora
from edgepack.adapters.base import PackedBase
from edgepack.calibration.moments import weight_hessian
from edgepack.checkpoint import Checkpoint
from edgepack.core.linalg import top_left_singular_vectors
from edgepack.core.progress import Progress, Steps
from edgepack.decompose.low_rank import exact_low_rank
from edgepack.errors import EdgepackError
from edgepack.finetune.frozen import frozen_pairs
from edgepack.finetune.reader import Reader
from edgepack.recipe.training import Finetune


def pissa(W: Tensor, rank: int) -> Lora:
    """The principal part of W ``[out, in]``: its first singular vectors, with the root of their
    values on both sides (Meng et al., arXiv 2404.02948, equation 2)."""
    U = top_left_singular_vectors(W.double(), torch.eye(W.shape[1]), rank).float()
    rest = U.T @ W  # S Vᵀ
    root = rest.norm(dim=1).clamp_min(1e-12).sqrt()
    return Lora((rest / root[:, None]).contiguous(), (U * root).contiguous())


def eora(W: Tensor, packed: Tensor, H: Tensor, rank: int) -> Lora:
    """The best correction of what packing lost: B·A ≈ W − packed in the metric of H ``[in, in]``
    (EoRA, arXiv 2410.21271; the closed form is CALDERA's)."""
    L, R = exact_low_rank(W - packed, H, rank)
    return Lora(R.float().contiguous(), L.float().contiguous())


def beginnings(
    base: PackedBase,
    names: Sequence[str],
    options: Finetune,
    original: Checkpoint | None,
    hessians: Path | None,
) -> Steps[Mapping[str, Lora]]:
    """The pairs that `init_lora_weights` asks for, by weight; none for the default. EoRA needs the
    `original` and the folder with its H."""
    if options.init_lora_weights == "default" or options.mode == "factors":
        return {}
    reader, found = Reader(base.checkpoint), {}
    for done, name in enumerate(names):
        yield Progress("finetune", done, len(names), f"{options.init_lora_weights}: {name}")
        W = reader.matrix(name).clone()
        for pair in frozen_pairs(base, name):
            W.addmm_(pair.B, pair.A)
        if options.init_lora_weights == "pissa":
            found[name] = pissa(W, options.r)
        else:
            if original is None or hessians is None:
                raise EdgepackError(
                    "finetune.init_lora_weights: eora needs the original model and its H, which "
                    "are not here",
                    hint="put the `finetune:` section into the recipe and build that",
                )
            spec = original.specs[name]
            H = weight_hessian(hessians, spec, tied=original.dimensions.tie_word_embeddings)
            found[name] = eora(original.tensor(name), W, H.train, options.r)
    return found
