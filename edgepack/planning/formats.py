"""The format and rank of every matrix as a recipe names them."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgepack import formats
from edgepack.checkpoint import Checkpoint
from edgepack.core import plugins
from edgepack.core.weights import WeightFormat, WeightSpec
from edgepack.errors import RecipeError
from edgepack.formats import factor_format
from edgepack.formats.base import Format, GgmlFormat
from edgepack.planning.target import Target
from edgepack.recipe.sections import Compress, WeightOptions

UNQUANTIZED = (
    *("position_embd", "attn_shortcut", "ffn_shortcut"),
    *("ssm_alpha", "ssm_beta", "per_layer_model_proj"),
)
"""Matrices that stay f16: those that nothing multiplies as W x, those with one row a head, of a few
bytes that decide what a gated delta net forgets, and one that llama.cpp's quantizer never touches.
"""


@dataclass(frozen=True)
class Given:
    """Formats that the recipe names."""

    formats: Mapping[str, WeightFormat] = field(default_factory=dict)


@dataclass(frozen=True)
class Fallback:
    """A format that was asked for and does not fit, and the one that stands in for it."""

    name: str
    asked: str
    given: str
    columns: int


def choose(
    checkpoint: Checkpoint, compress: Compress | None, target: Target
) -> tuple[dict[str, WeightFormat], tuple[Fallback, ...]]:
    """The format and rank of every matrix, and the substitutions that were asked for."""
    choices, fallbacks = {}, []
    for name, spec in checkpoint.specs.items():
        if not spec.is_matrix:
            continue
        choice, fallback = _choice(spec, compress, target)
        choices[name] = choice
        if fallback:
            fallbacks.append(fallback)
    check_overrides(checkpoint, compress)
    _check_stacks(checkpoint, choices)
    return choices, tuple(fallbacks)


def _check_stacks(checkpoint: Checkpoint, choices: Mapping[str, WeightFormat]) -> None:
    """All experts' weights of a role in a block are one tensor of a file, of one format."""
    first: dict[tuple[int | None, str], str] = {}
    for name, fmt in choices.items():
        stack = checkpoint.specs[name].stack
        if stack is None or choices[other := first.setdefault(stack, name)] == fmt:
            continue
        raise RecipeError(
            f"compress.overrides: {name} and {other} have several formats, and are one tensor",
            hint="give all experts one format and one rank, as in '*.experts.*.down_proj'",
        )


def check_overrides(checkpoint: Checkpoint, compress: Compress | None) -> None:
    """Every glob must match a matrix."""
    names = [name for name, spec in checkpoint.specs.items() if spec.is_matrix]
    for pattern in compress.overrides if compress else {}:
        if not any(matches(pattern, name) for name in names):
            raise RecipeError(
                f"compress.overrides: {pattern!r} matches no weight",
                hint="weights are called " + ", ".join(sorted(names)[-3:]),
            )


def _choice(
    spec: WeightSpec, compress: Compress | None, target: Target
) -> tuple[WeightFormat, Fallback | None]:
    if compress is None or spec.role in UNQUANTIZED:
        return WeightFormat("f16"), None
    wanted, place = _options(spec, compress)
    assert wanted.format is not None
    form: Format = find_format(wanted.format, place, target, compress)
    fallback = None
    if not form.fits(spec.shape[1]):
        fitting = [f for f in _by_size(target, compress) if f.fits(spec.shape[1])]
        if compress.fallback == "refuse":
            names = ", ".join(f.name for f in fitting)
            raise RecipeError(
                f"{place}: rows of {spec.name} have {spec.shape[1]} columns, not a multiple of "
                f"the {form.block_size} of {form.name}",
                hint=f"formats that fit: {names}; or set compress.fallback: nearest",
            )
        nearest = min(fitting, key=lambda f: abs(f.bits_per_weight - form.bits_per_weight))
        fallback = Fallback(spec.name, form.name, nearest.name, spec.shape[1])
        form = nearest
    return with_rank(spec, form, wanted, place), fallback


def allowed(fmt: Format, compress: Compress) -> bool:
    """Whether the recipe allows a format: one that stock runtimes have, or any."""
    return compress.experimental_types or not (isinstance(fmt, GgmlFormat) and fmt.waits)


def _by_size(target: Target, compress: Compress) -> list[Format]:
    """The formats of a target that the recipe allows, smallest first."""
    every = map(formats.get, plugins.names("formats"))
    usable = (f for f in every if target.stores(f) and allowed(f, compress))
    return sorted(usable, key=lambda f: f.bits_per_weight)


def _options(spec: WeightSpec, compress: Compress) -> tuple[WeightOptions, str]:
    """The options of a weight after all overrides, and the recipe's key for its format."""
    found: dict[str, Any] = {"format": compress.format, "rank": compress.rank}
    place = "compress.format"
    if spec.block is None:
        role = "head" if spec.role == "output" and compress.head else "embeddings"
        found = {"format": getattr(compress, role), "rank": 0}
        place = f"compress.{role}"
    overrides, overridden = options_of(spec, compress)
    found |= {"factors": compress.factors, **overrides.model_dump(exclude_none=True)}
    return WeightOptions.model_validate(found), overridden or place


def options_of(spec: WeightSpec, compress: Compress) -> tuple[WeightOptions, str]:
    """What the overrides say of a weight (None where they are silent), and the key of the last."""
    found: dict[str, Any] = {}
    place = ""
    for pattern, options in compress.overrides.items():
        if matches(pattern, spec.name):
            found |= options.model_dump(exclude_none=True)
            place = f"compress.overrides.{pattern}"
    return WeightOptions.model_validate(found), place


def with_rank(spec: WeightSpec, fmt: Format, wanted: WeightOptions, place: str) -> WeightFormat:
    """A format with the rank that `wanted` asks for, checked, and the formats of its factors."""
    rank, factors = wanted.rank or 0, wanted.factors or "f16"
    if not rank:
        return WeightFormat(fmt.name)
    if spec.role in ("token_embd", "per_layer_token_embd"):
        raise RecipeError(
            f"{place}: llama.cpp has no place for factors of {spec.name}", hint="give it rank 0"
        )
    if fmt.name == "f16":
        raise RecipeError(
            f"{place}: {fmt.name} leaves nothing for factors of {spec.name} to correct",
            hint="give it rank 0",
        )
    if rank >= min(spec.shape):
        raise RecipeError(
            f"{place}: rank {rank} is not below {min(spec.shape)}, the smaller side of {spec.name}",
            hint="a rank of 8 to 128 is usual",
        )
    L, R = factor_format(factors, rank), factor_format(factors, spec.shape[1])
    return WeightFormat(fmt.name, rank, L, R)


def find_format(name: str, place: str, target: Target, compress: Compress) -> Format:
    """A format of a target, by the name that the recipe gives at `place`."""
    try:
        fmt = formats.get(name)
    except RecipeError as error:
        raise RecipeError(f"{place}: there is no format {name!r}", hint=error.hint) from None
    if not target.stores(fmt):
        raise RecipeError(
            f"{place}: {name} is no format of --target {target.name}",
            hint="its formats: " + ", ".join(f.name for f in _by_size(target, compress)),
        )
    if not allowed(fmt, compress):
        assert isinstance(fmt, GgmlFormat)
        raise RecipeError(
            f"{place}: {name} is an experimental type: {fmt.waits}",
            hint="--experimental-types allows it, or compress.experimental_types: true",
        )
    return fmt


def factor_bytes(spec: WeightSpec, fmt: WeightFormat) -> int:
    """Bytes of L and R."""
    if not fmt.rank or fmt.L is None or fmt.R is None:
        return 0
    rows, columns = spec.shape
    return formats.get(fmt.L).nbytes((rows, fmt.rank)) + formats.get(fmt.R).nbytes(
        (fmt.rank, columns)
    )


def weight_bytes(spec: WeightSpec, fmt: WeightFormat | None) -> int:
    """Bytes of a weight without its factors; what is no matrix has no format and is float32."""
    return 4 * spec.numel if fmt is None else formats.get(fmt.Q).nbytes(spec.shape)


def tensor_bytes(model: Checkpoint, chosen: Mapping[str, WeightFormat]) -> int:
    """Bytes of all tensors, factors included."""
    specs = model.specs.values()
    factors = sum(factor_bytes(model.specs[name], fmt) for name, fmt in chosen.items())
    return factors + sum(weight_bytes(spec, chosen.get(spec.name)) for spec in specs)


def matches(pattern: str, name: str) -> bool:
    """Globs may leave out the ``.weight`` at the end."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(
        name.removesuffix(".weight"), pattern
    )
