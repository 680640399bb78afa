"""`edgepack merge --check`: inputs of a merge compared before anything heavy.

Everything is read from headers, configurations and tokenizers. Errors are what cannot be merged, or
would give a model that computes nonsense; warnings are what a merge decides in favour of the base.
The same check runs before every merge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edgepack.core.tables import align, format_size
from edgepack.core.untrusted import shorten
from edgepack.errors import RecipeError
from edgepack.merge import comparisons
from edgepack.merge.chat_templates import template_of
from edgepack.merge.comparisons import NONE, Row, Slices, compared, short
from edgepack.merge.embeddings import TokenRule
from edgepack.merge.facts import Facts
from edgepack.merge.tokenizers import MergedTokenizer, merge_tokenizers
from edgepack.merge.vocabulary import SPECIAL, Vocabulary, compare

WIDTH = 28
"""Characters of a cell."""


@dataclass(frozen=True)
class TokenizerOptions:
    """What a recipe says about the tokenizer; the arguments of `merge_tokenizers`."""

    source: str | None = None
    rules: Mapping[str, TokenRule] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None
    chat_template: str | None = None
    outside: Vocabulary | None = None


@dataclass(frozen=True)
class Check:
    """All rows; the tokenizer of the result, if there is one."""

    models: tuple[str, ...]
    rows: tuple[Row, ...]
    tokenizer: MergedTokenizer | None = None

    @property
    def errors(self) -> tuple[Row, ...]:
        """What stops the merge."""
        return tuple(row for row in self.rows if row.verdict == "error")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is printed before a merge."""
        return tuple(f"{r.fact}: {r.note}" for r in self.rows if r.verdict == "warning")

    @property
    def exit_code(self) -> int:
        """0 if the merge can be done."""
        return RecipeError.exit_code if self.errors else 0

    def require(self) -> None:
        """Raise `RecipeError` for the first error."""
        for row in self.errors:
            more = len(self.errors) - 1
            also = f" (and {more} more; --check lists them)" if more else ""
            raise RecipeError(f"{row.fact}: {row.note}{also}", hint=row.hint)

    def with_memory(self, nbytes: int) -> Check:
        """With a row for what the merge needs in memory."""
        text = (format_size(nbytes), *[""] * (len(self.models) - 1))
        return replace(self, rows=(*self.rows, Row("memory of the merge", text)))

    def lines(self) -> list[str]:
        """The table, then a line for every warning and error."""
        head = ("", *(shorten(name, WIDTH) for name in self.models), "")
        cells = [(r.fact, *(shorten(v, WIDTH) for v in r.values), r.verdict) for r in self.rows]
        notes = [
            f"{row.verdict}: {row.fact}: {row.note}" + (f"; {row.hint}" if row.hint else "")
            for row in self.rows
            if row.verdict != "ok"
        ]
        return [*align([head, *cells]), *(["", *notes] if notes else [])]

    def as_json(self) -> dict[str, Any]:
        """The same as data."""
        rows = [
            {"fact": r.fact, "values": list(r.values), "verdict": r.verdict, "note": r.note}
            for r in self.rows
        ]
        return {"models": list(self.models), "rows": rows, "ok": not self.errors}


def check(
    inputs: Sequence[Facts],
    base: str | None = None,
    *,
    slices: Slices | None = None,
    options: TokenizerOptions | None = None,
    out_dtype: str | None = None,
) -> Check:
    """Compare the inputs of a merge.

    `slices` are those of the recipe (None: all layers of all), `out_dtype` is the type of the
    result as in safetensors. Without `options`, inputs with the same tokenizer files have no
    `Check.tokenizer`: the files stay as they are.
    """
    options = options or TokenizerOptions()
    first = next((facts for facts in inputs if facts.name == base), inputs[0])
    merged, tokens = _tokens(inputs, first, base, options)
    rows = [
        comparisons.family(inputs, first),
        comparisons.layers(inputs, first, slices),
        *comparisons.settings(inputs, first),
        *comparisons.tensors(inputs, first, slices),
        comparisons.dtypes(inputs, out_dtype),
        comparisons.heads(inputs),
        *tokens,
        comparisons.licences(inputs),
    ]
    if not any(row.verdict == "error" for row in rows):
        count = first.rows if merged is None else merged.rows.count
        rows.append(comparisons.size(inputs, first, slices, count, out_dtype))
    return Check(tuple(facts.name for facts in inputs), tuple(rows), merged)


def _tokens(
    inputs: Sequence[Facts], first: Facts, base: str | None, options: TokenizerOptions
) -> tuple[MergedTokenizer | None, list[Row]]:
    """The tokenizer of the result, and rows about vocabularies and templates."""
    sizes = tuple(str(facts.rows) for facts in inputs)
    if options == TokenizerOptions() and _same_files(inputs):
        same = Row("tokenizer files", ("the same",) * len(inputs))
        return None, [Row("vocabulary rows", sizes), same]
    vocabularies = [facts.vocabulary for facts in inputs]
    present = [v for v in vocabularies if v is not None]
    if len(present) < len(inputs):
        return None, [_without_tokenizer(inputs, sizes, options)]
    own = next(v for v in present if v.model == first.name)
    differing = tuple(str(len(compare(own, v))) for v in present)
    rows = [Row("vocabulary rows", sizes)]
    templates = [template_of(v) for v in present]
    known = list(dict.fromkeys(t for t in templates if t is not None))
    shown = tuple(NONE if t is None else f"no. {known.index(t) + 1}" for t in templates)
    try:
        merged = merge_tokenizers(
            present,
            base,
            source=options.source,
            rules=options.rules,
            pad_to_multiple_of=options.pad_to_multiple_of,
            chat_template=options.chat_template,
            outside=options.outside,
        )
    except RecipeError as error:
        tokens = Row("differing tokens", differing, "error", error.message, error.hint)
        return None, [*rows, tokens, Row("chat template", shown)]
    if moved := _moved_rows(inputs, merged):
        note = (
            f"{short(moved.name)} is of a family that edgepack does not know, so its embeddings "
            "cannot be put into another order"
        )
        hint = "leave out tokenizer and tokenizer_source"
        tokens = Row("differing tokens", differing, "error", note, hint)
        return None, [*rows, tokens, Row("chat template", shown)]
    about_chat = [w for w in merged.warnings if w.startswith("chat_template: ")]
    others = [w for w in merged.warnings if w not in about_chat]
    if options.outside is not None:
        rows.append(comparisons.of_result("tokenizer of", options.outside.model, inputs))
    rows += [
        _row("differing tokens", differing, [w.removeprefix("tokenizer: ") for w in others]),
        *_special(inputs, first, merged.origin.model),
        _row("chat template", shown, [w.removeprefix("chat_template: ") for w in about_chat]),
    ]
    return merged, rows


def _same_files(inputs: Sequence[Facts]) -> bool:
    """Whether nothing needs to be loaded: all have the same tokenizer, and as many rows."""
    digests = {facts.tokenizer_digest for facts in inputs}
    return len(digests) == 1 and None not in digests and len({f.rows for f in inputs}) == 1


def _moved_rows(inputs: Sequence[Facts], merged: MergedTokenizer) -> Facts | None:
    """A model of a family that is not known whose embeddings would have to change, if any."""
    unknown = (facts for facts in inputs if not facts.known)
    return next((f for f in unknown if not merged.rows.is_identity(f.name, f.rows)), None)


def _special(inputs: Sequence[Facts], first: Facts, origin: str) -> Iterator[Row]:
    """A row for every special token that a model has; the result has those of `origin`, which may
    be the name of a model outside the merge."""
    own = next((facts for facts in inputs if facts.name == origin), first)
    for role in SPECIAL:

        def read(facts: Facts, role: str = role) -> str | None:
            return None if facts.vocabulary is None else facts.vocabulary.special[role]

        if any(read(facts) for facts in inputs):
            note = f"the result has that of {short(origin)}"
            yield compared(role.replace("_", " "), inputs, own, read, "warning", note)


def _row(fact: str, values: tuple[str, ...], warnings: Sequence[str]) -> Row:
    return Row(fact, values, "warning" if warnings else "ok", "; ".join(warnings))


def _without_tokenizer(
    inputs: Sequence[Facts], sizes: tuple[str, ...], options: TokenizerOptions
) -> Row:
    """The row where a model has no tokenizer: embeddings can only be merged row by row."""
    without = next(facts.name for facts in inputs if facts.vocabulary is None)
    note = f"{short(without)} has no tokenizer"
    if options.source is not None or options.rules:
        return Row("vocabulary rows", sizes, "error", f"{note}, which the recipe asks for")
    if len(set(sizes)) > 1:
        note += ", and embeddings have other numbers of rows"
        return Row("vocabulary rows", sizes, "error", note, "add the model's tokenizer.json")
    return Row("vocabulary rows", sizes, "warning", f"{note}; rows are taken to be the same tokens")
