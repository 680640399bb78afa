"""Weights that share one choice: those of all experts of a block, which a file has as one stack."""

from __future__ import annotations

from collections.abc import Mapping

from edgepack.allocate.knapsack import Option
from edgepack.core.weights import WeightSpec
from edgepack.errors import RecipeError

Specs = Mapping[str, WeightSpec]
Options = dict[str, list[Option]]


def alike(options: Options, specs: Specs) -> Options:
    """Of every weight, the options that the others of its stack have too."""
    common: dict[str, set[tuple[str, int]]] = {}
    for name, found in options.items():
        key, own = _key(specs[name]), {(o.format, o.rank) for o in found}
        common[key] = common.get(key, own) & own
    for key, left in common.items():
        if not left:
            raise RecipeError(
                f"compress: the experts of {key} have no format in common, and are one tensor",
                hint="let compress.overrides name all of them alike",
            )
    return {
        name: [o for o in found if (o.format, o.rank) in common[_key(specs[name])]]
        for name, found in options.items()
    }


def together(options: Mapping[str, list[Option]], specs: Specs) -> Options:
    """The options of every stack, and of every weight that is in none: bytes and costs add up."""
    sums: dict[str, dict[tuple[str, int], Option]] = {}
    for name, found in options.items():
        here = sums.setdefault(_key(specs[name]), {})
        for one in found:
            kind = one.format, one.rank
            before = here.get(kind, Option(*kind, 0, 0.0))
            here[kind] = Option(*kind, before.nbytes + one.nbytes, before.cost + one.cost)
    return {key: list(found.values()) for key, found in sums.items()}


def apart(
    chosen: Mapping[str, Option], options: Mapping[str, list[Option]], specs: Specs
) -> dict[str, Option]:
    """Every weight's own option, by the choice for its stack."""
    made = {}
    for name, found in options.items():
        kind = chosen[_key(specs[name])]
        made[name] = next(o for o in found if (o.format, o.rank) == (kind.format, kind.rank))
    return made


def _key(spec: WeightSpec) -> str:
    return spec.name if spec.expert is None else f"block {spec.block}, {spec.role}"
