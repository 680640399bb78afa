"""Which tensors the result has, and what each is merged from: known from headers and the recipe.

Layers come slice by slice and are counted anew. What is outside the layers comes from the sources
of the first slice (embeddings) or of the last one (final norm, head), at t = 0, as in mergekit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from edgepack.architectures.base import START
from edgepack.core.untrusted import shorten
from edgepack.errors import CheckpointError, RecipeError
from edgepack.merge.inputs import FLOATS, Input, Layers
from edgepack.merge.methods.base import Base, Method, Value
from edgepack.merge.parameters import Scope, check_names, resolve
from edgepack.recipe.merging import DTYPES, Merge
from edgepack.recipe.references import Reference

FIRST_WORDS = ("embed", "wte", "wpe")
"""Parts of the names of what a model begins with, in families that are not known."""
ROWS = ("token_embd", "output", "output.bias")
"""Roles of tensors with one row a token."""
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Operand:
    """A tensor of an input, by the input's place in `Layout.inputs`, and its own parameters."""

    input: int
    name: str
    values: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class MergedTensor:
    """A tensor of the result. `has_rows` says that it has one row a token."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    operands: tuple[Operand, ...]
    base: Operand | None
    parameters: Mapping[str, Value]
    has_rows: bool = False

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in a file."""
        return self.numel * BYTES[self.dtype]

    @property
    def reads(self) -> tuple[Operand, ...]:
        """All that it is made of, the base last."""
        return self.operands if self.base is None else (*self.operands, self.base)


@dataclass(frozen=True)
class Layout:
    """All tensors of the result, in order. `origins` has for every layer the input (by its place)
    and the layer there that its entries in the configuration come from."""

    inputs: tuple[Input, ...]
    tensors: tuple[MergedTensor, ...]
    origins: tuple[tuple[int, int], ...]
    tied: bool

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


def make_layout(
    merge: Merge, inputs: Mapping[Reference, Input], method: Method, rows: int | None = None
) -> Layout:
    """The layout of a merge of `inputs`, by their references.

    `rows` is the number of rows of the embeddings, None where they stay as they are. Raises
    `RecipeError` for what the method cannot do (values of parameters that do not go together too),
    and `CheckpointError` for tensors that are missing or of another shape.
    """
    slices = _slices(merge, inputs, method)
    names = _outside_names([part for one in (slices[0], slices[-1]) for part in one.parts])
    first = [name for name in names if _is_first(name, slices[0].parts[0].input)]
    last = [name for name in names if name not in first]
    tensors = [slices[0].outside(name, rows) for name in first]
    origins: list[tuple[int, int]] = []
    for one in slices:
        for step in range(len(one.parts[0].layers)):
            tensors += one.layer(step, len(origins))
            origins.append(one.origin(step))
    tensors += [slices[-1].outside(name, rows) for name in last]
    head = _head(slices[-1].parts[0].input)
    tied = _is_tied(slices[-1].parts[0].input) and head not in names
    return Layout(tuple(inputs.values()), tuple(tensors), tuple(origins), tied)


@dataclass(frozen=True, eq=False)
class _Part:
    """Layers of an input, and the parameters that are its own."""

    place: int
    input: Input
    layers: range
    scope: Scope | None

    def inside(self, step: int) -> dict[str, str]:
        """Name inside the layer → whole name, for the layer at a step."""
        return self._by_layer.get(self.layers[step], {})

    @cached_property
    def _by_layer(self) -> dict[int, dict[str, str]]:
        found: dict[int, dict[str, str]] = {}
        layers = _layers(self.input)
        for name in self.input.tensors:
            layer, inside = layers.split(name)
            if layer is not None:
                found.setdefault(layer, {})[inside] = name
        return found


@dataclass(frozen=True)
class _Slice:
    """A slice of the result. `parts` has every source, the base too where it is merged or where
    differences to it are."""

    method: Method
    merge: Merge
    parts: tuple[_Part, ...]
    base: _Part | None
    scopes: tuple[Scope, ...]

    def layer(self, step: int, number: int) -> list[MergedTensor]:
        """The tensors of one layer, which is layer `number` of the result."""
        names = [part.inside(step) for part in self.parts]
        inside = dict.fromkeys(name for found in names for name in found)
        count = len(self.parts[0].layers)
        t = step / (count - 1) if count > 1 else 1.0
        layers = _layers(self.parts[0].input)
        made = []
        for name in inside:
            for part, found in zip(self.parts, names, strict=True):
                if name not in found:
                    _refuse_missing(part, layers.name(part.layers[step], name), self.parts)
            made.append(
                self._tensor(layers.name(number, name), [found[name] for found in names], t)
            )
        return made

    def origin(self, step: int) -> tuple[int, int]:
        """The input and its layer whose entries in the configuration a layer takes: the base's, or
        the first source's."""
        part = self.base or self.parts[0]
        return part.place, part.layers[step]

    def outside(self, name: str, rows: int | None) -> MergedTensor:
        """A tensor outside the layers. The head of a tied model is its embedding."""
        names = []
        for part in self.parts:
            own = name if name in part.input.tensors else _tied_name(part.input, name)
            if own is None:
                _refuse_missing(part, name, self.parts)
            else:
                names.append(own)
        return self._tensor(name, names, 0.0, rows)

    def _tensor(
        self, name: str, names: Sequence[str], t: float, rows: int | None = None
    ) -> MergedTensor:
        """The tensor `name` of the result, of the tensors `names` of the parts."""
        own = dict(zip(self.parts, names, strict=True))
        has_rows = _has_rows(self.parts[0].input, names[0])
        shape = self._shape(own, ignore_rows=has_rows and rows is not None)
        if has_rows and rows is not None:
            shape = (rows, *shape[1:])
        operands, base = [], None
        for part, its_name in own.items():
            if part is self.base:
                base = Operand(part.place, its_name)
                continue
            scopes = (*((part.scope,) if part.scope else ()), *self.scopes)
            values = resolve(self.method, scopes, its_name, t, of_model=True)
            operands.append(Operand(part.place, its_name, values))
        parameters = resolve(self.method, self.scopes, name, t, of_model=False)
        self.method.check_values([operand.values for operand in operands], parameters, name)
        dtype = self._dtype(own)
        return MergedTensor(name, shape, dtype, tuple(operands), base, parameters, has_rows)

    def _shape(self, own: Mapping[_Part, str], *, ignore_rows: bool) -> tuple[int, ...]:
        """The shape that all parts have."""
        (first, name), *others = own.items()
        shape = first.input.tensors[name].shape
        for part, its_name in others:
            found = part.input.tensors[its_name].shape
            if found != shape and not (ignore_rows and found[1:] == shape[1:]):
                raise CheckpointError(
                    f"{part.input.name}: {shorten(its_name, 80)} has shape {list(found)}, in "
                    f"{first.input.name} {list(shape)}",
                    hint="only models of one architecture and size can be merged",
                )
        return shape

    def _dtype(self, own: Mapping[_Part, str]) -> str:
        """The type that a tensor is stored as."""
        wanted = self.merge.out_dtype or self.merge.dtype
        if wanted is not None:
            return DTYPES[wanted]
        part = self.base or self.parts[0]
        stored = part.input.tensors[own[part]].dtype
        return stored if stored in FLOATS else "F16"


def _slices(merge: Merge, inputs: Mapping[Reference, Input], method: Method) -> list[_Slice]:
    """The slices of a merge; `models` are one slice of all layers."""
    places = {reference: place for place, reference in enumerate(inputs)}
    top: Scope = ("parameters", merge.parameters)
    check_names(method, [top])

    def part(reference: Reference, layers: range, scope: Scope | None) -> _Part:
        if scope is not None:
            check_names(method, [scope])
        found = _Part(places[reference], inputs[reference], layers, scope)
        _check_range(found)
        return found

    made = []
    if merge.models is not None:
        parts = {}
        for number, model in enumerate(merge.models):
            count = _layers(inputs[model.model]).count
            scope = (f"models.{number}.parameters", model.parameters)
            if model.model in parts:
                raise RecipeError(
                    f"models.{number}: {model.model} is there twice", hint="add up the weights"
                )
            parts[model.model] = part(model.model, range(count), scope)
        base = merge.base_model
        if base is not None and base not in parts and method.base is not Base.ORDINARY:
            parts[base] = part(base, range(_layers(inputs[base]).count), None)
        made.append(_slice("merge", merge, method, parts, base, (top,)))
    for number, output in enumerate(merge.slices or ()):
        place = f"slices.{number}"
        parts = {}
        for index, source in enumerate(output.sources):
            scope = (f"{place}.sources.{index}.parameters", source.parameters)
            if source.model in parts:
                raise RecipeError(
                    f"{place}: {source.model} is there twice", hint="put it into another slice"
                )
            parts[source.model] = part(source.model, source.layers, scope)
        base = output.base_model or merge.base_model
        if base is not None and base not in parts and method.base is not Base.ORDINARY:
            parts[base] = part(base, _base_layers(place, parts, base), None)
        scope = (f"{place}.parameters", output.parameters)
        check_names(method, [scope])
        made.append(_slice(place, merge, method, parts, base, (scope, top)))
    return made


def _slice(
    place: str,
    merge: Merge,
    method: Method,
    parts: Mapping[Reference, _Part],
    base: Reference | None,
    scopes: tuple[Scope, ...],
) -> _Slice:
    """A slice, once it is checked."""
    counts = {part.input.name: len(part.layers) for part in parts.values()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise RecipeError(
            f"{place}: the models have different numbers of layers: {shorten(shown, 150)}",
            hint="`slices` with layer_range say which layers belong together",
        )
    kept = parts.get(base) if base is not None and method.base is not Base.ORDINARY else None
    method.check_models(len(parts) - (kept is not None), kept is not None, place)
    return _Slice(method, merge, tuple(parts.values()), kept, scopes)


def _base_layers(place: str, parts: Mapping[Reference, _Part], base: Reference) -> range:
    """The layers of a base that the slice does not name: those that all sources have."""
    ranges = {part.layers for part in parts.values()}
    if len(ranges) > 1:
        raise RecipeError(
            f"{place}: which layers of the base_model {base} belong to these?",
            hint="name it among the sources, with its layer_range",
        )
    return ranges.pop()


def _check_range(part: _Part) -> None:
    count = _layers(part.input).count
    if part.layers.stop > count:
        raise RecipeError(
            f"layer_range: {part.input.name} has {count} layers, not {part.layers.stop}",
            hint=f"the last layer_range is [{part.layers.start}, {count}]",
        )


def _layers(model: Input) -> Layers:
    """How the layers of a model are called; one without layers is all outside."""
    return model.layers or Layers("", 0)


def _outside_names(parts: Iterable[_Part]) -> list[str]:
    """Names of the tensors outside the layers, in the order of the first part."""
    found: dict[str, None] = {}
    for part in parts:
        layers = _layers(part.input)
        found |= dict.fromkeys(n for n in part.input.tensors if layers.split(n)[0] is None)
    return list(found)


def _is_first(name: str, model: Input) -> bool:
    """Whether a tensor comes before the layers."""
    if model.architecture is not None:
        return any(model.architecture.outside.get(role) == name for role in START)
    return any(word in name for word in FIRST_WORDS)


def _has_rows(model: Input, name: str) -> bool:
    """Whether a tensor has one row a token."""
    family = model.architecture
    return family is not None and any(family.outside.get(role) == name for role in ROWS)


def _head(model: Input) -> str | None:
    """The head's name in a known family."""
    return None if model.architecture is None else model.architecture.outside.get("output")


def _is_tied(model: Input) -> bool:
    if model.checkpoint is not None:
        return model.checkpoint.dimensions.tie_word_embeddings
    return bool(model.config.get("tie_word_embeddings"))


def _tied_name(model: Input, name: str) -> str | None:
    """What a tied model has in place of a head."""
    if model.architecture is None or name != _head(model) or not _is_tied(model):
        return None
    return model.architecture.outside["token_embd"]


def _refuse_missing(part: _Part, name: str, parts: Sequence[_Part]) -> None:
    others = [other.input.name for other in parts if other is not part]
    raise CheckpointError(
        f"{part.input.name}: lacks {shorten(name, 80)}, which {others[0]} has",
        hint="an incomplete download, or models of different kinds",
    )
