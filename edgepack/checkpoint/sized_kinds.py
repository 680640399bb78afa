"""Kinds of blocks that differ in the sizes of heads, in inner widths, or in having keys and values
of their own (Gemma 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from edgepack.architectures.base import (
    FULL,
    KEYS_ONLY,
    SHARED_FULL,
    SHARED_SLIDING,
    SHARES_WITH,
    SLIDING,
)
from edgepack.checkpoint.base import Dimensions
from edgepack.checkpoint.completed import HINT
from edgepack.errors import CheckpointError

SIZES = ("head_dim", "num_key_value_heads")
"""What ``per_layer_config`` may say of a block."""


class Settings(Protocol):
    """The entries of config.json about kinds."""

    @property
    def num_kv_shared_layers(self) -> int: ...  # noqa: D102
    @property
    def use_double_wide_mlp(self) -> bool: ...  # noqa: D102
    @property
    def attention_k_eq_v(self) -> bool: ...  # noqa: D102
    @property
    def per_layer_config(self) -> Mapping[str, Mapping[str, int]] | None: ...  # noqa: D102


@dataclass(frozen=True)
class Kinds:
    """What blocks have: `sizes` those of blocks with a window and without (`SIZES`), keys and
    values of their own up to the last `shared` blocks, whose inner width is `shared_width`.
    With `keys_only`, values of blocks without a window are their keys."""

    sizes: Mapping[str, Mapping[str, Any]]
    shared: int
    shared_width: int
    keys_only: bool

    def apply(self, d: Dimensions, where: str) -> Dimensions:
        """`d`, whose blocks are sliding or full, with the kinds that they are."""
        first = d.num_hidden_layers - self.shared
        if first < 1:
            raise CheckpointError(
                f"{where}: {self.shared} of {d.num_hidden_layers} blocks share keys and values of "
                "blocks before them",
                hint=HINT,
            )
        full = KEYS_ONLY if self.keys_only else FULL
        names = {SLIDING: (SLIDING, SHARED_SLIDING), FULL: (full, SHARED_FULL)}
        types = tuple(names[kind][i >= first] for i, kind in enumerate(d.layer_types))
        kinds: dict[str, dict[str, Any]] = {}
        for kind, pair in names.items():
            more = {**d.kinds.get(kind, {}), **self.sizes[kind]}
            wide = {**more, "intermediate_size": self.shared_width}
            kinds |= {pair[0]: more, pair[1]: wide}
        found = replace(
            d,
            layer_types=types,
            kinds={kind: kinds[kind] for kind in sorted(set(types))},
            **self.sizes[FULL],
        )
        for index in range(first, d.num_hidden_layers):
            if maker_of(types, index) is None:
                raise CheckpointError(
                    f"{where}: block {index} shares keys and values, and no block before is of "
                    f"its kind ({d.layer_types[index]})",
                    hint=HINT,
                )
        return found


def to_config(d: Dimensions) -> dict[str, Any]:
    """The entries of config.json about kinds, the inverse of `of_config`."""
    types = [SLIDING if kind in (SLIDING, SHARED_SLIDING) else FULL for kind in d.layer_types]
    sliding, full = ({k: own[k] for k in SIZES} for own in _own_sizes(d))
    keys_only = KEYS_ONLY in d.layer_types
    more = {"num_global_key_value_heads": full["num_key_value_heads"]} if keys_only else {}
    return {
        **sliding,
        **more,
        "global_head_dim": full["head_dim"],
        "per_layer_config": {str(i): full for i, kind in enumerate(types) if kind == FULL},
        "layer_types": types,
        "attention_k_eq_v": keys_only,
        "num_kv_shared_layers": sum(kind in SHARES_WITH for kind in d.layer_types),
        "use_double_wide_mlp": d.block(d.num_hidden_layers - 1).intermediate_size
        != d.intermediate_size,
        "hidden_size_per_layer_input": d.hidden_size_per_layer_input,
        "vocab_size_per_layer_input": d.vocab_size,
    }


def _own_sizes(d: Dimensions) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What blocks with a window have of their own, and what those without."""
    full = {name: getattr(d, name) for name in SIZES}
    return d.kinds.get(SLIDING, full), full


def maker_of(types: Sequence[str], index: int) -> int | None:
    """The last block before `index` whose keys and values a block of its kind reads."""
    sources = SHARES_WITH[types[index]]
    return max((i for i in range(index) if types[i] in sources), default=None)


def of_config(d: Dimensions, config: Settings, where: str) -> Dimensions:
    """`d` with the kinds of blocks that config.json says."""
    given = config.per_layer_config or {}
    usual = {name: getattr(d, name) for name in SIZES}
    sizes: dict[str, dict[str, int]] = {}
    for index, kind in enumerate(d.layer_types):
        more = given.get(str(index), {})
        if unknown := set(more) - set(SIZES):
            raise CheckpointError(
                f"{where}: per_layer_config: {min(unknown)} is not supported",
                hint=f"supported: {', '.join(SIZES)}",
            )
        whole = {**usual, **more}
        if sizes.setdefault(kind, whole) != whole:
            raise CheckpointError(
                f"{where}: per_layer_config: blocks of kind {kind} differ in size",
                hint="edgepack reads models whose blocks of a kind are alike",
            )
    wide = 2 if config.use_double_wide_mlp else 1
    kinds = Kinds(
        {kind: sizes.get(kind, usual) for kind in (SLIDING, FULL)},
        config.num_kv_shared_layers,
        wide * d.intermediate_size,
        config.attention_k_eq_v,
    )
    return kinds.apply(d, where)
