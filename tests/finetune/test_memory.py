"""What a run is expected to need, and how a limit is kept to."""

from __future__ import annotations

from bisect import bisect_left

import pytest

from edgepack.errors import EdgepackError
from edgepack.finetune import memory
from edgepack.finetune.trained import targets
from edgepack.recipe.training import Finetune
from tests.support.bases import packed_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return packed_base(tmp_path_factory.mktemp("base"), hidden=256, intermediate=512)[0]


def layout(base, longest=64, **given):
    options = Finetune(data="d", **given)
    packed = memory.Packed(base.checkpoint, base.ranks)
    return memory.choose_layout(packed, targets(base.checkpoint, options), options, longest)


def fits(base, limit):
    try:
        return layout(base, memory=max(1, limit)) is not None
    except EdgepackError:
        return False


def test_without_a_limit_it_is_the_fastest(base):
    found = layout(base)
    assert (found.positions, found.kind) == (memory.USUAL_POSITIONS, "memory")
    assert layout(base, longest=900).positions == 900


def test_a_limit_is_kept_by_fewer_positions_then_by_the_disk(base):
    free = layout(base)
    small = layout(base, memory=free.peak - 1)
    assert small.peak < free.peak
    assert small.positions < free.positions
    least = bisect_left(range(free.peak), True, key=lambda limit: fits(base, limit))
    tight = layout(base, memory=least)
    assert (tight.positions, tight.kind) == (64, "disk")
    with pytest.raises(EdgepackError, match="MB are too few for examples of 64 tokens") as refused:
        layout(base, memory=least - 1)
    assert "int8" in refused.value.hint


def test_only_exact_layouts_are_chosen_by_themselves(base):
    assert layout(base, activations="int4").kind == "int4"
    kinds = {layout(base, memory=layout(base).peak - n * 10**6).kind for n in (0, 5)}
    assert kinds <= {"memory", "disk"}


@pytest.mark.parametrize(
    "less",
    [{"optimizer_states": "int8"}, {"r": 2}, {"target_modules": ["q_proj"]}, {"held_out": 0}],
)
def test_what_the_hint_names_helps(base, less):
    assert layout(base, **less).peak <= layout(base).peak
