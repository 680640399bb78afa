"""Rows of embeddings in the order of a merged vocabulary.

Each input of a merge has its own rows: other ids for a token, other tokens, other padding. Before
tensors of a vocabulary's size are merged, each input's is put into the merged order by `Rows`. What
is missing is filled in as in mergekit 0.1.5 (held to it by tests/merge/test_tokenizers.py): the
base's row, else the mean of the rows of those that have the token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgepack.core.untrusted import quote, shorten
from edgepack.errors import RecipeError
from edgepack.merge.vocabulary import Vocabulary

ROLES = ("token_embd", "output", "output.bias")
"""Roles of tensors with one row a token."""
NONE = -1
"""In maps of rows: no row."""


@dataclass(frozen=True)
class TokenRule:
    """Where inputs that lack a token take its row from; all inputs, if `force`.

    `zero` is a row of zeros. Else it is the row of `token` (None: the token itself), or the row
    `token_id`, of `model`. Without a model the usual order applies.
    """

    model: str | None = None
    token: str | None = None
    token_id: int | None = None
    zero: bool = False
    force: bool = False


@dataclass(frozen=True)
class Rows:
    """Where the `count` rows of a merged embedding come from.

    For each input, `own` int64 ``[count]`` has the row of its embedding that a merged row takes,
    −1 where it has none. It then takes the default: the mean over all inputs of the rows in
    `default` int64 ``[count]`` (−1: not this input), or zeros where no input counts. `filled` bool
    ``[count]`` marks rows that no input can give: they take the mean of the input's other rows.
    """

    count: int
    own: Mapping[str, Tensor] = field(repr=False)
    default: Mapping[str, Tensor] = field(repr=False)
    filled: Tensor = field(repr=False)

    def is_identity(self, model: str, rows: int) -> bool:
        """Whether an embedding of `rows` rows stays as it is."""
        return rows == self.count and torch.equal(self.own[model], torch.arange(self.count))

    def needs(self, model: str) -> tuple[str, ...]:
        """The inputs whose embeddings `take` reads for `model`, itself first."""
        missing = self.own[model] == NONE
        others = [n for n, rows in self.default.items() if (rows[missing] != NONE).any()]
        return (model, *(name for name in others if name != model))

    def take(self, model: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """The input's tensor ``[its rows, …]`` in the merged order, ``[count, …]``, in its own
        type. `tensors` has those of `needs(model)`; means are formed in float32."""
        tensor, own = tensors[model], self.own[model]
        out = tensor.new_zeros((self.count, *tensor.shape[1:]))
        there = own != NONE
        out[there] = tensor[own[there]]
        missing = ~there & ~self.filled
        if missing.any():
            out[missing] = self._mean(missing, tensors, like=out[missing])
        filled = ~there & self.filled
        if filled.any() and not self.filled.all():
            out[filled] = out[~self.filled].float().mean(dim=0).to(out.dtype)
        return out

    def _mean(self, rows: Tensor, tensors: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """The default of some rows; zeros where no input counts."""
        total = torch.zeros_like(like, dtype=torch.float32)
        count = torch.zeros(len(like), dtype=torch.float32)
        for name, default in self.default.items():
            chosen = default[rows]
            counts = chosen != NONE
            if counts.any():
                total[counts] += tensors[name][chosen[counts]].float()
                count += counts
        shape = (-1, *[1] * (like.ndim - 1))
        return (total / count.clamp(min=1).reshape(shape)).to(like.dtype)


def plan_rows(
    ids: Mapping[str, int],
    count: int,
    inputs: Sequence[Vocabulary],
    base: str | None = None,
    rules: Mapping[str, TokenRule] | None = None,
) -> Rows:
    """The rows of `count` that tokens with the merged `ids` take from the `inputs`.

    A row without a token is padding: an input keeps its own where it has padding there too.
    `RecipeError` if a rule names a token, row or model that is not there.
    """
    named = torch.zeros(count, dtype=torch.bool)
    named[torch.tensor(list(ids.values()), dtype=torch.int64)] = True
    own = {v.model: _own(ids, named, v) for v in inputs}
    there = {model: (rows != NONE) & named for model, rows in own.items()}
    of_base = there[base] if base is not None else torch.zeros(count, dtype=torch.bool)
    default = {
        model: torch.where(there[model] & (~of_base | (model == base)), own[model], NONE)
        for model in own
    }
    filled = ~torch.stack(list(there.values())).any(dim=0)
    for token, rule in (rules or {}).items():
        index = ids[token]
        if rule.zero or rule.model is not None:
            for rows in default.values():
                rows[index] = NONE
            filled[index] = False
        if rule.model is not None:
            default[rule.model][index] = _row_of(rule, token, inputs)
        if rule.force:
            for rows in own.values():
                rows[index] = NONE
    return Rows(count, own, default, filled)


def _own(ids: Mapping[str, int], named: Tensor, vocabulary: Vocabulary) -> Tensor:
    """The input's own row of every merged row, −1 for none."""
    own = torch.full(named.shape, NONE, dtype=torch.int64)
    known = vocabulary.ids
    theirs = torch.tensor([known.get(token, NONE) for token in ids], dtype=torch.int64)
    own[torch.tensor(list(ids.values()), dtype=torch.int64)] = theirs
    own[own >= vocabulary.rows] = NONE
    padding = ~named
    padding[vocabulary.rows :] = False
    used = torch.tensor(list(known.values()), dtype=torch.int64)
    padding[used[used < len(padding)]] = False
    own[padding] = torch.arange(len(own))[padding]
    return own


def _row_of(rule: TokenRule, token: str, inputs: Sequence[Vocabulary]) -> int:
    """The row that a rule names."""
    place = f"tokenizer.tokens.{shorten(token, 40)}"
    source = next((v for v in inputs if v.model == rule.model), None)
    if source is None:
        raise RecipeError(
            f"{place}: {shorten(str(rule.model), 60)} is not among the models of the merge",
            hint="models: " + shorten(", ".join(v.model for v in inputs), 150),
        )
    if rule.token_id is not None:
        if not 0 <= rule.token_id < source.rows:
            raise RecipeError(
                f"{place}: {shorten(source.model, 60)} has no row {rule.token_id}",
                hint=f"its embedding has {source.rows} rows",
            )
        return rule.token_id
    wanted = token if rule.token is None else rule.token
    row = source.row(wanted)
    if row is None:
        raise RecipeError(
            f"{place}: {shorten(source.model, 60)} has no token {quote(shorten(wanted, 40))}",
            hint="name a model that has it, or kind: model_token with another token",
        )
    return row
