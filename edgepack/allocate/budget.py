"""A byte budget → the format and rank of every matrix, embeddings and head included.

The allocate stage measures what each choice costs (`allocate.costs`). Until it has run, costs are
guessed from the bits alone, so that a plan can give a rough result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack import formats
from edgepack.allocate import stacks
from edgepack.allocate.costs import MAX_BITS_FOR_RANKS, Costs, Search, load_costs
from edgepack.allocate.knapsack import Option, allocate, cheapest
from edgepack.checkpoint import Checkpoint
from edgepack.core.weights import WeightFormat, WeightSpec
from edgepack.errors import RecipeError
from edgepack.planning.formats import (
    UNQUANTIZED,
    check_overrides,
    factor_bytes,
    find_format,
    options_of,
    with_rank,
)
from edgepack.planning.target import Target
from edgepack.recipe.sections import Compress, FactorFormat, WeightOptions

RANKS = (0, 32, 64, 128)


@dataclass(frozen=True)
class Allocation:
    """Formats chosen for a budget, bytes of the files, and the expected KL in nats a token (the sum
    over the weights; None before it is measured), with and without ranks."""

    formats: Mapping[str, WeightFormat]
    target: int
    size: int
    expected_kl: float | None
    expected_kl_rank_0: float | None

    def as_dict(self) -> dict[str, Any]:
        """Fields for the manifest; it lists the formats with the weights."""
        return {key: value for key, value in vars(self).items() if key != "formats"}


def search(checkpoint: Checkpoint, compress: Compress, target: Target) -> Search:
    """The formats and ranks that the allocate stage measures."""
    check_overrides(checkpoint, compress)
    names = compress.candidates or target.ladder
    fmts = [find_format(name, "compress.candidates", target, compress) for name in names]
    tried = {}
    for name, spec in checkpoint.specs.items():
        if not spec.is_matrix:
            continue
        wanted, place = options_of(spec, compress)
        if spec.role in UNQUANTIZED:
            tried[name] = ["f16"]
            continue
        own = wanted.format
        here = fmts if own is None else [find_format(own, place, target, compress)]
        tried[name] = [fmt.name for fmt in here if fmt.fits(spec.shape[1])]
        if not tried[name]:
            raise RecipeError(
                f"compress.candidates: none fits the {spec.shape[1]} columns of {name}",
                hint="add one of 32 columns a block, such as q8_0",
            )
    asked = [options.rank for options in compress.overrides.values() if options.rank is not None]
    ranks = sorted({*(compress.ranks or RANKS), *asked})
    return Search(tried, ranks, compress.factors, max(compress.damping))


def spend(
    checkpoint: Checkpoint,
    compress: Compress,
    choices: Search,
    measured: Path | None,
    files: Callable[[Mapping[str, WeightFormat]], int],
    required: Callable[[str], str | None] = lambda _: None,
) -> Allocation:
    """Choose formats by the costs in the folder `measured`, or by guessed costs if that is None.
    `files` gives the bytes of the files with these formats, `required` the exact type that a weight
    has to have, if it has to."""
    specs = {name: checkpoint.specs[name] for name in choices.formats}

    def costs(spec: WeightSpec) -> Costs:
        only = required(spec.name)
        if only is not None:
            return {only: {0: 0.0}}
        if measured is not None:
            return load_costs(measured, spec.name)
        names = choices.formats[spec.name]
        return {name: dict.fromkeys(choices.ranks, _guess(spec, name)) for name in names}

    options = {
        name: _options(spec, compress, costs(spec), compress.ranks or RANKS)
        for name, spec in specs.items()
    }
    target, size_of = _target(checkpoint, compress, specs, files)
    options = stacks.alike(options, specs)
    chosen = _within(options, specs, target, size_of)
    plain = {name: [o for o in found if not o.rank] or found for name, found in options.items()}
    control = _within(plain, specs, target, size_of)
    kl = sum(o.cost for o in chosen.values())
    return Allocation(
        {name: _choice(specs[name], compress, o.format, o.rank) for name, o in chosen.items()},
        target,
        size_of(chosen),
        kl if measured is not None else None,
        sum(o.cost for o in control.values()) if measured is not None else None,
    )


def _guess(spec: WeightSpec, name: str) -> float:
    """A cost that falls by 6 dB a bit, as rounding noise does."""
    return float(spec.numel * 4.0 ** -formats.get(name).bits_per_weight)


def _options(
    spec: WeightSpec, compress: Compress, costs: Costs, ranks: Sequence[int]
) -> list[Option]:
    """Every format and rank that a weight may have; an override's rank is the only one."""
    wanted, _ = options_of(spec, compress)
    wanted_ranks = ranks if wanted.rank is None else [wanted.rank]
    if spec.block is None:
        wanted_ranks = [0]
    factors = wanted.factors or compress.factors
    found = [
        _option(spec, factors, name, rank, cost)
        for name, by_rank in costs.items()
        for rank, cost in by_rank.items()
        if rank in wanted_ranks and _can_have(spec, rank)
    ]
    if not found:
        raise RecipeError(
            f"compress: no candidate for {spec.name} has a rank of {list(wanted_ranks)}",
            hint=f"ranks above 0 are tried below {MAX_BITS_FOR_RANKS:g} bits; allow rank 0 as well",
        )
    return found


def _can_have(spec: WeightSpec, rank: int) -> bool:
    """Whether a weight may have that rank: blocks' weights may have factors, below full rank."""
    return not rank or (spec.block is not None and rank < min(spec.shape))


def _option(spec: WeightSpec, factors: FactorFormat, name: str, rank: int, cost: float) -> Option:
    fmt = _format(spec, factors, name, rank)
    nbytes = formats.get(name).nbytes(spec.shape) + factor_bytes(spec, fmt)
    return Option(name, rank, nbytes, cost)


def _choice(spec: WeightSpec, compress: Compress, name: str, rank: int) -> WeightFormat:
    return _format(spec, options_of(spec, compress)[0].factors or compress.factors, name, rank)


def _format(spec: WeightSpec, factors: FactorFormat, name: str, rank: int) -> WeightFormat:
    """What was chosen, checked. The recipe's values are valid: there are too many choices to
    validate them again."""
    wanted = WeightOptions.model_construct(rank=rank, factors=factors)
    return with_rank(spec, formats.get(name), wanted, "compress.ranks")


Size = Callable[[Mapping[str, Option]], int]


def _target(
    checkpoint: Checkpoint,
    compress: Compress,
    specs: Mapping[str, WeightSpec],
    files: Callable[[Mapping[str, WeightFormat]], int],
) -> tuple[int, Size]:
    """The budget in bytes, and the size of a choice that is compared to it: files, or matrices."""
    if compress.target_size is None:
        assert compress.bits_per_weight is not None
        elements = sum(checkpoint.counted.specs[name].numel for name in specs)
        return int(elements * compress.bits_per_weight / 8), _matrices

    def whole(chosen: Mapping[str, Option]) -> int:
        return files({n: _choice(specs[n], compress, o.format, o.rank) for n, o in chosen.items()})

    return int(compress.target_size), whole


def _matrices(chosen: Mapping[str, Option]) -> int:
    return sum(option.nbytes for option in chosen.values())


def _within(
    options: Mapping[str, list[Option]],
    specs: Mapping[str, WeightSpec],
    target: int,
    size_of: Size,
) -> dict[str, Option]:
    """The best choice whose files are no larger than `target`."""
    together = stacks.together(options, specs)
    fewest = {key: cheapest(found) for key, found in together.items()}
    smallest = stacks.apart(fewest, options, specs)
    overhead = size_of(smallest) - _matrices(smallest)
    if size_of(smallest) > target:
        raise RecipeError(
            f"compress: a budget of {target:,} bytes is less than the smallest choice of formats "
            f"takes, {size_of(smallest):,}",
            hint="give more, or add smaller formats to compress.candidates",
        )
    budget = target - overhead
    while True:
        chosen = stacks.apart(allocate(together, budget), options, specs)
        over = size_of(chosen) - target
        if over <= 0:
            return chosen
        budget -= over  # the files also hold headers of factors, and padding
