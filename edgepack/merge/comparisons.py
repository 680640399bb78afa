"""Rows of the check of a merge: what its inputs are, fact by fact, and what a difference means."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepack.core.tables import format_size
from edgepack.core.untrusted import shorten
from edgepack.merge.facts import SETTINGS, Facts, Verdict

Slices = Sequence[Sequence[tuple[str, range]]]
"""The slices of the result; of each the sources: a model's name and its layers."""
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
NONE = "–"


@dataclass(frozen=True)
class Row:
    """A fact: what it is of every model, and what that means for the merge."""

    fact: str
    values: tuple[str, ...]
    verdict: Verdict = "ok"
    note: str = ""
    hint: str | None = None


def compared(
    fact: str,
    inputs: Sequence[Facts],
    first: Facts,
    read: Callable[[Facts], Any],
    verdict: Verdict,
    note: str,
) -> Row:
    """A row whose values should agree; what is not known agrees with everything."""
    texts = tuple(_text(read(facts)) for facts in inputs)
    known = [facts for facts in inputs if read(facts) is not None]
    one = first if first in known or not known else known[0]
    other = next((facts for facts in known if read(facts) != read(one)), None)
    if other is None:
        return Row(fact, texts)
    ours, theirs = texts[inputs.index(one)], texts[inputs.index(other)]
    what = f"{ours} in {short(one.name)}, {theirs} in {short(other.name)}: {note}"
    return Row(fact, texts, verdict, what)


def family(inputs: Sequence[Facts], first: Facts) -> Row:
    """One family, or one architecture in GGUF."""
    names = tuple(facts.family for facts in inputs)
    for other in inputs:
        if other.family == first.family:
            continue
        alike = other.runs_as == first.runs_as != "" and (other.is_gguf or first.is_gguf)
        if not alike:  # a GGUF of a Mistral says llama
            note = (
                f"{short(first.name)} is a {first.family} model, {short(other.name)} a "
                f"{other.family} model"
            )
            return Row("family", names, "error", note, "merge models of one family")
    if not first.known:
        note = f"edgepack does not know {first.family}; tensors are merged by their names"
        return Row("family", names, "warning", note)
    return Row("family", names)


def layers(inputs: Sequence[Facts], first: Facts, slices: Slices | None) -> Row:
    """As many layers, or layer ranges that exist."""
    values = tuple(str(facts.layers) for facts in inputs)
    if slices is None:
        row = compared("layers", inputs, first, lambda f: f.layers, "error", "not as many")
        hint = "write slices with a layer_range for each model"
        return row if row.verdict == "ok" else Row("layers", values, "error", row.note, hint)
    known = {facts.name: facts.layers for facts in inputs}
    for part in slices:
        for name, chosen in part:
            if chosen.stop > known[name]:
                note = (
                    f"layer_range [{chosen.start}, {chosen.stop}] of {short(name)}, which has "
                    f"{known[name]} layers"
                )
                return Row("layers", values, "error", note, "the end is not included")
    return Row("layers", values)


def settings(inputs: Sequence[Facts], first: Facts) -> Iterator[Row]:
    """The settings of `SETTINGS` that any of the models has."""
    for key, (fact, why) in SETTINGS.items():

        def read(facts: Facts, key: str = key) -> Any:
            return facts.settings.get(key)

        if any(read(facts) is not None for facts in inputs):
            verdict: Verdict = "warning" if why is None else "error"
            note = why or f"the result has that of {short(first.name)}"
            yield compared(fact, inputs, first, read, verdict, note)


def tensors(inputs: Sequence[Facts], first: Facts, slices: Slices | None) -> Iterator[Row]:
    """Rows about names and shapes; the rows of embeddings are the tokenizer's affair."""
    counts = tuple(str(len(facts.tensors)) for facts in inputs)
    missing, misshapen = _differences(inputs, first, slices)
    for fact, found, hint in (
        ("tensors", missing, "an incomplete download, or another kind of model"),
        ("shapes", misshapen, "the models are of different sizes"),
    ):
        values = counts if fact == "tensors" else tuple(f"{_numel(f) / 1e6:.1f} M" for f in inputs)
        if not found:
            yield Row(fact, values)
            continue
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield Row(fact, values, "error", found[0] + more, hint)


def _differences(
    inputs: Sequence[Facts], first: Facts, slices: Slices | None
) -> tuple[list[str], list[str]]:
    """Tensors that only some have, and those of different shapes, in words."""
    missing: list[str] = []
    misshapen: list[str] = []

    def look(one: Facts, other: Facts, mine: _Tensors, theirs: _Tensors, place: str) -> None:
        for name in [*mine, *(n for n in theirs if n not in mine)]:
            a, b = mine.get(name), theirs.get(name)
            if a is None or b is None:
                lacking, having = (one, other) if a is None else (other, one)
                missing.append(
                    f"{short(lacking.name)} lacks {place}{name}, which {short(having.name)} has"
                )
            elif a != b:
                misshapen.append(
                    f"{place}{name} is {list(a)} in {short(one.name)}, {list(b)} in "
                    f"{short(other.name)}"
                )

    heads = _heads_of(inputs)
    for other in inputs:
        if other is not first:
            look(first, other, _outside(first, heads), _outside(other, heads), "")
    known = {facts.name: facts for facts in inputs}
    parts = slices or [[(facts.name, range(facts.layers)) for facts in inputs]]
    for part in parts:
        name, layers = part[0]
        for other_name, others in part[1:]:
            for i, j in zip(layers, others, strict=False):
                mine, theirs = (_shapes(known[n], k) for n, k in ((name, i), (other_name, j)))
                look(known[name], known[other_name], mine, theirs, f"layer {j}: ")
    return missing, misshapen


_Tensors = Mapping[str, tuple[int, ...]]


def _heads_of(inputs: Sequence[Facts]) -> set[str]:
    """Heads that tied models do not have."""
    if len({facts.tied for facts in inputs}) < 2:
        return set()
    untied = [set(facts.embeddings) for facts in inputs if not facts.tied]
    tied = [set(facts.embeddings) for facts in inputs if facts.tied]
    return set().union(*untied) - set().union(*tied)


def _outside(facts: Facts, heads: set[str]) -> _Tensors:
    """Shapes outside the layers, without the number of tokens."""
    return {
        name: info.shape[1:] if name in facts.embeddings else info.shape
        for name, info in facts.outside.items()
        if name not in heads
    }


def _shapes(facts: Facts, layer: int) -> _Tensors:
    return {name: info.shape for name, info in facts.inside.get(layer, {}).items()}


def dtypes(inputs: Sequence[Facts], out_dtype: str | None) -> Row:
    """The type of most weights."""
    values = tuple(_main_dtype(facts) for facts in inputs)
    if len(set(values)) < 2 or out_dtype is not None:
        return Row("stored as", values)
    note = "different types; write dtype or out_dtype to say which the result has"
    return Row("stored as", values, "warning", note)


def _main_dtype(facts: Facts) -> str:
    """The type that most of the weights have."""
    counts: Counter[str] = Counter()
    for info in facts.tensors.values():
        counts[info.dtype] += math.prod(info.shape)
    return counts.most_common(1)[0][0] if counts else NONE


def heads(inputs: Sequence[Facts]) -> Row:
    """Whether heads are tied to the embeddings."""
    values = tuple("tied" if facts.tied else "own" for facts in inputs)
    if len(set(values)) < 2:
        return Row("head", values)
    note = "some heads are tied to the embeddings and some are not; the result has its own"
    return Row("head", values, "warning", note)


def licences(inputs: Sequence[Facts]) -> Row:
    """What the model cards state."""
    values = tuple(facts.licence or NONE for facts in inputs)
    known = sorted({value for value in values if value != NONE})
    if len(known) < 2:
        return Row("licence", values)
    note = f"{' and '.join(known)}: the result is under all of them"
    return Row("licence", values, "warning", note)


def size(
    inputs: Sequence[Facts], first: Facts, slices: Slices | None, count: int, dtype: str | None
) -> Row:
    """Parameters and bytes of the result."""
    known = {facts.name: facts for facts in inputs}
    parts = slices or [[(first.name, range(first.layers))]]
    tensors = [
        (
            math.prod(info.shape[1:]) * count
            if name in first.embeddings
            else math.prod(info.shape),
            info,
        )
        for name, info in first.outside.items()
    ]
    for part in parts:
        name, layers = part[0]
        for layer in layers:
            inside = known[name].inside[layer].values()
            tensors += [(math.prod(info.shape), info) for info in inside]
    numel = sum(n for n, _ in tensors)
    nbytes = sum(n * BYTES.get(dtype or info.dtype, 4) for n, info in tensors)
    text = f"{numel / 1e6:.1f} M weights, {format_size(nbytes)}"
    return of_result("result", text, inputs)


def of_result(fact: str, text: str, inputs: Sequence[Facts]) -> Row:
    """A fact that is not of one model."""
    return Row(fact, (text, *[""] * (len(inputs) - 1)))


def _numel(facts: Facts) -> int:
    return sum(math.prod(info.shape) for info in facts.tensors.values())


def _text(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, Mapping):
        return json.dumps(dict(value), sort_keys=True)
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def short(name: str) -> str:
    """A name that fits into a message."""
    return shorten(name, 60)
