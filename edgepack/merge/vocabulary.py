"""The vocabulary of one input of a merge, and how two of them differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgepack.checkpoint import probes
from edgepack.core.untrusted import quote, shorten

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
"""Roles of special tokens that inputs are compared by."""
SHOWN = 4
"""Tokens that a message names."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of the model called `model`, whose embedding has `rows` rows.

    A tokenizer may have ids beyond `rows` (tokens that were added and never given a row), and an
    embedding may have rows without a token (padding).
    """

    model: str
    tokenizer: PreTrainedTokenizerFast = field(repr=False, compare=False)
    rows: int

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Token → id, added tokens included, in the order of ids."""
        found: dict[str, int] = self.tokenizer.get_vocab()
        return dict(sorted(found.items(), key=lambda entry: entry[1]))

    @cached_property
    def content(self) -> Mapping[str, Any]:
        """The tokenizer.json. It is shared: copy it before a change."""
        return probes.backend_of(self.tokenizer)

    @cached_property
    def added(self) -> Mapping[str, Mapping[str, Any]]:
        """Added tokens by their text: entries of tokenizer.json (id, special, lstrip …)."""
        return {entry["content"]: entry for entry in self.content["added_tokens"]}

    @property
    def special(self) -> Mapping[str, str | None]:
        """Text of each special token, by its role; None where there is none."""
        return {role: getattr(self.tokenizer, role) for role in SPECIAL}

    def row(self, token: str) -> int | None:
        """The row of a token; None if the model has no such token, or no row for it."""
        found = self.ids.get(token)
        return found if found is not None and found < self.rows else None


@dataclass(frozen=True)
class Difference:
    """Tokens that only `one` or only `other` has, and (token, id in one, id in other) of those that
    both have under different ids."""

    one: str
    other: str
    only_one: tuple[str, ...] = ()
    only_other: tuple[str, ...] = ()
    moved: tuple[tuple[str, int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.only_one) + len(self.only_other) + len(self.moved)

    def __str__(self) -> str:
        parts = []
        for model, tokens in ((self.one, self.only_one), (self.other, self.only_other)):
            if tokens:
                parts.append(f"only {_short(model)} has {_listed([_name(t) for t in tokens])}")
        if self.moved:
            shown = [f"{_name(token)} ({a} and {b})" for token, a, b in self.moved]
            parts.append(f"other ids for {_listed(shown)}")
        return "; ".join(parts) or "the same tokens"


def compare(one: Vocabulary, other: Vocabulary) -> Difference:
    """The tokens in which two vocabularies differ; padding does not count."""
    a, b = one.ids, other.ids
    if a == b:
        return Difference(one.model, other.model)
    return Difference(
        one.model,
        other.model,
        tuple(token for token in a if token not in b),
        tuple(token for token in b if token not in a),
        tuple((t, i, b[t]) for t, i in a.items() if b.get(t, i) != i),
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _name(token: str) -> str:
    return quote(shorten(token, 30))


def _short(model: str) -> str:
    return shorten(model, 60)
