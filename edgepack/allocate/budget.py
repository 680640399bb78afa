"""A byte budget → the format and rank of every matrix, embeddings and head included.

What each choice costs is measured by the allocate stage (`decompose.candidates`); until that has
run, a guess from the bits alone stands in, so that a plan can say roughly what will come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepack.allocate.costs import RANKED_BELOW, Costs, Search, load_costs
from edgepack.allocate.knapsack import Option, allocate, cheapest
from edgepack.checkpoint import Checkpoint
from edgepack.core.errors import RecipeError
from edgepack.core.stage import Stage
from edgepack.core.weights import WeightSpec
from edgepack.decompose.stage import Choice
from edgepack.export import gguf
from edgepack.planning.formats import (
    UNQUANTIZED,
    check_overrides,
    factor_bytes,
    format_of,
    known,
    options_of,
    parts_of,
    ranked,
)
from edgepack.recipe.sections import Compress, Recipe, WeightOptions

LADDER = {
    "gguf": (
        *("q8_0", "q6_k", "q5_1", "q5_k", "q5_0", "q4_1", "q4_k", "iq4_nl", "iq4_xs", "mxfp4"),
        *("iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "q2_0"),
    ),
    "onnx": (
        *("q8_0", "int4_g32", "q4_0", "int4_g64", "int4_g128", "int3_g32", "int3_g64", "int3_g128"),
        *("int2_g32", "q2_0", "int2_g128"),
    ),
}
"""Target → types that no other of about their size betters after error feedback
(`benchmarks/types.py`), or that fit widths where those do not."""
RANKS = (0, 32, 64, 128)


@dataclass(frozen=True)
class Allocation:
    """What a budget bought: choices, bytes of the files, and the KL to expect in nats a token (the
    sum over the weights; None before it is measured), with and without ranks."""

    tried: Search
    choices: Mapping[str, Choice]
    target: int
    size: int
    expected_kl: float | None
    expected_kl_rank_0: float | None

    def as_dict(self) -> dict[str, Any]:
        """For the manifest, where each weight has its choice already."""
        own = ("tried", "choices")
        return {key: value for key, value in vars(self).items() if key not in own}


def search(checkpoint: Checkpoint, compress: Compress, target: str) -> Search:
    """What the allocate stage has to try."""
    check_overrides(checkpoint, compress)
    names = compress.candidates or LADDER[target]
    forms = [known(name, "compress.candidates", target) for name in names]
    formats = {}
    for name, spec in checkpoint.specs.items():
        if len(spec.shape) < 2:
            continue
        wanted, place = options_of(spec, compress)
        if spec.role in UNQUANTIZED:
            formats[name] = ["f16"]
            continue
        here = forms if wanted.format is None else [known(wanted.format, place, target)]
        formats[name] = [form.name for form in here if form.fits(spec.shape[1])]
        if not formats[name]:
            raise RecipeError(
                f"compress.candidates: none fits the {spec.shape[1]} columns of {name}",
                hint="add one of 32 columns a block, such as q8_0",
            )
    asked = [options.rank for options in compress.overrides.values() if options.rank is not None]
    ranks = sorted({*(compress.ranks or RANKS), *asked})
    return Search(formats, ranks, compress.factors, max(compress.damping))


def spend(
    checkpoint: Checkpoint,
    compress: Compress,
    tried: Search,
    stage: Stage,
    files: Callable[[Mapping[str, Choice]], int],
) -> Allocation:
    """Choose; from measured costs where `stage` is done. `files` says how many bytes choices make
    as files."""
    specs = {name: checkpoint.specs[name] for name in tried.formats}
    measured = stage.is_done

    def costs(spec: WeightSpec) -> Costs:
        if measured:
            return load_costs(stage.folder, spec.name)
        formats = tried.formats[spec.name]
        return {name: dict.fromkeys(tried.ranks, _guess(spec, name)) for name in formats}

    options = {
        name: _options(spec, compress, costs(spec), compress.ranks or RANKS)
        for name, spec in specs.items()
    }
    target, size_of = _target(checkpoint, compress, specs, files)
    chosen = _within(options, target, size_of)
    plain = {name: [o for o in found if not o.rank] or found for name, found in options.items()}
    control = _within(plain, target, size_of)
    kl = sum(o.cost for o in chosen.values())
    return Allocation(
        tried,
        {name: _choice(specs[name], compress, o.format, o.rank) for name, o in chosen.items()},
        target,
        size_of(chosen),
        kl if measured else None,
        sum(o.cost for o in control.values()) if measured else None,
    )


def _guess(spec: WeightSpec, name: str) -> float:
    """Rounding noise falls by 6 dB a bit."""
    return float(spec.numel * 4.0 ** -format_of(name).bits_per_weight)


def _options(
    spec: WeightSpec, compress: Compress, costs: Costs, ranks: Sequence[int]
) -> list[Option]:
    """Every format and rank of a weight; an override's rank stands."""
    wanted, _ = options_of(spec, compress)
    wanted_ranks = ranks if wanted.rank is None else [wanted.rank]
    if spec.block is None:
        wanted_ranks = [0]
    found = [
        _option(spec, compress, name, rank, cost)
        for name, by_rank in costs.items()
        for rank, cost in by_rank.items()
        if rank in wanted_ranks and _can_have(spec, rank)
    ]
    if not found:
        raise RecipeError(
            f"compress: no candidate for {spec.name} has a rank of {list(wanted_ranks)}",
            hint=f"ranks above 0 are tried below {RANKED_BELOW:g} bits; allow rank 0 as well",
        )
    return found


def _can_have(spec: WeightSpec, rank: int) -> bool:
    """Factors go beside the weights of blocks, and below full rank."""
    return not rank or (spec.block is not None and rank < min(spec.shape))


def _option(spec: WeightSpec, compress: Compress, name: str, rank: int, cost: float) -> Option:
    choice = _choice(spec, compress, name, rank)
    return Option(name, rank, format_of(name).nbytes(spec.shape) + factor_bytes(spec, choice), cost)


def _choice(spec: WeightSpec, compress: Compress, name: str, rank: int) -> Choice:
    wanted = options_of(spec, compress)[0].factors or compress.factors
    return ranked(spec, format_of(name), WeightOptions(rank=rank, factors=wanted), "compress.ranks")


Size = Callable[[Mapping[str, Option]], int]


def _target(
    checkpoint: Checkpoint,
    compress: Compress,
    specs: Mapping[str, WeightSpec],
    files: Callable[[Mapping[str, Choice]], int],
) -> tuple[int, Size]:
    """The budget in bytes, and what of a choice counts towards it: whole files, or matrices."""
    if compress.target_size is None:
        assert compress.bits_per_weight is not None
        elements = sum(checkpoint.counted.specs[name].numel for name in specs)
        return int(elements * compress.bits_per_weight / 8), _matrices

    def whole(chosen: Mapping[str, Option]) -> int:
        return files({n: _choice(specs[n], compress, o.format, o.rank) for n, o in chosen.items()})

    return int(compress.target_size), whole


def _matrices(chosen: Mapping[str, Option]) -> int:
    return sum(option.nbytes for option in chosen.values())


def _within(options: Mapping[str, list[Option]], target: int, size_of: Size) -> dict[str, Option]:
    """The best choice whose files are no larger than `target`."""
    smallest = {name: cheapest(found) for name, found in options.items()}
    overhead = size_of(smallest) - _matrices(smallest)
    if size_of(smallest) > target:
        raise RecipeError(
            f"compress: a budget of {target:,} bytes is less than the smallest choice of formats "
            f"takes, {size_of(smallest):,}",
            hint="give more, or add smaller formats to compress.candidates",
        )
    budget = target - overhead
    while True:
        chosen = allocate(options, budget)
        over = size_of(chosen) - target
        if over <= 0:
            return chosen
        budget -= over  # headers of factors, and padding


def files_size(
    target: str, recipe: Recipe, checkpoint: Checkpoint, choices: Mapping[str, Choice]
) -> int:
    """Bytes that the files of a target will have: tensors, factors, metadata."""
    parts = parts_of(choices)
    if target == "onnx":
        from edgepack.export import onnx

        options = onnx.graph_options(checkpoint, recipe.export.onnx)
        return onnx.files_size(checkpoint, parts, options)
    factors = {name: known for name, known in parts.items() if known.rank}
    return gguf.files_size(checkpoint, {name: known.Q for name, known in parts.items()}, factors)
