"""What every weight would cost in every format and rank: measured, on held-out tokens.

The KL that an error E = W − Q − L·R adds is ½·tr(H_out E H Eᵀ)/out, H and H_out from tokens that
rounding has not seen. Q is made as it will be made (error feedback at one damping); for ranks, the
best correction of that Q in closed form, in float32: the alternation that follows only lowers it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from edgepack import plugins
from edgepack.cache import atomic
from edgepack.calibration.moments import weight_hessian
from edgepack.decoder import Decoder
from edgepack.decompose._side_by_side import side_by_side
from edgepack.decompose.caldera import caldera
from edgepack.decompose.low_rank import exact_low_rank
from edgepack.errors import while_doing
from edgepack.formats._base import Format
from edgepack.progress import Progress, Steps
from edgepack.weights import Hessian, WeightSpec, quadratic_cost

RANKED_BELOW = 5.0
"""Bits per weight of Q; from there on ranks are not tried: a finer Q is the cheaper correction."""

Costs = dict[str, dict[int, float]]
"""Format → rank → KL in nats a token."""


@dataclass(frozen=True)
class Search:
    """What is tried: formats of each weight, ranks above 0, and the damping of H."""

    formats: Mapping[str, Sequence[str]]
    ranks: Sequence[int]
    damping: float


def load_costs(folder: Path, name: str) -> Costs:
    """The measured costs of a weight."""
    found = json.loads((folder / f"{name}.json").read_text())
    return {f: {int(rank): cost for rank, cost in by.items()} for f, by in found.items()}


def measure_candidates(
    decoder: Decoder, search: Search, hessians: Path, folder: Path
) -> Steps[None]:
    """Write one file of costs per weight into `folder`, leaving out those already there."""
    specs = [decoder.checkpoint.specs[name] for name in search.formats]
    total = sum(s.numel * len(search.formats[s.name]) for s in specs)
    missing = [s for s in specs if not (folder / f"{s.name}.json").exists()]
    done = total - sum(s.numel * len(search.formats[s.name]) for s in missing)
    measure = partial(_measure, decoder, search, hessians, folder)
    for spec in side_by_side(measure, missing):
        formats = len(search.formats[spec.name])
        label = f"{spec.name.removesuffix('.weight')} in {formats} formats"
        yield Progress("allocate", done, total, label)
        done += spec.numel * formats


def _measure(
    decoder: Decoder, search: Search, hessians: Path, folder: Path, spec: WeightSpec
) -> None:
    with while_doing(f"trying formats for {spec.name}"):
        H = weight_hessian(hessians, spec, tied=decoder.dimensions.tie_word_embeddings)
        costs = {name: _costs(decoder, search, spec, H, name) for name in search.formats[spec.name]}
        with atomic(folder / f"{spec.name}.json") as path:
            path.write_text(json.dumps(costs, indent=1))


def _costs(
    decoder: Decoder, search: Search, spec: WeightSpec, H: Hessian, name: str
) -> dict[int, float]:
    """Rank → cost of one format."""
    fmt: Format = plugins.find("formats", name)
    checkpoint = decoder.checkpoint
    W = checkpoint.tensor(spec.name)
    found = caldera(
        W,
        H,
        fmt,
        rank=0,
        factors="f16",
        damping=[search.damping],
        iterations=1,
        source=checkpoint.quantized(spec.name),
    )
    E = W - found.weight.dense()
    costs = {0: divergence(E, H)}
    ranks = [r for r in search.ranks if 0 < r < min(spec.shape)]
    if not ranks or spec.block is None or fmt.bits_per_weight >= RANKED_BELOW or not costs[0]:
        return costs
    L, R = exact_low_rank(E, H.train, max(ranks), H.out_train)
    return costs | {r: divergence(E - (L[:, :r] @ R[:r]).float(), H) for r in ranks}


def divergence(E: Tensor, H: Hessian) -> float:
    """What an error E ``[out, in]`` adds to KL(original ‖ packed), in nats a token, to second
    order, on held-out tokens."""
    return quadratic_cost(E, H.held_out, H.out_held_out) / (2 * len(E))
