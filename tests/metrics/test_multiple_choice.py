"""Multiple choice by likelihood: the packed batch against one sequence at a time."""

from __future__ import annotations

import importlib
import math
import sys
import types
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.checkpoint import open_checkpoint
from edgepack.core.progress import finish
from edgepack.errors import EdgepackError, RuntimeMissingError
from edgepack.metrics.multiple_choice import Answers, Mean, answer, encode, log_likelihoods
from edgepack.metrics.tasks import Item
from edgepack.runtimes.forks import Fork, layout, pack
from tests.support.tiny import make_model, write_gguf

ITEMS = [
    Item.from_context(
        "Question: why is the fox quick?\nAnswer:", ["it is brown", "no", "we'll see"], 1
    ),
    Item.from_context("The moon was", ["there. ", "384400 kilometres away, in 1969"], 1),
    Item(("Les élèves", "La rivière"), ("étaient là.", "étaient là."), 0),
    Item.from_context("add(left, right) ", ["left", "right", "лиса", "茶色の狐"], 3),
]


class Table:
    """A runtime whose logits follow from position, token and the sum of the tokens before."""

    def __init__(self, bos=None, context=256, sequences=8):
        self.bos, self.context, self.sequences, self.vocab_size = bos, context, sequences, 64
        self.table = np.random.default_rng(0).normal(0, 2, (97, 64)).astype("f4")
        self.batches = []

    def tokenize(self, text, *, bos=True, special=False):
        start = [self.bos] if bos and self.bos is not None else []
        return start + [ord(c) % 64 for c in text]

    def logits(self, tokens, first=0):
        sums = np.cumsum(tokens)
        return np.stack([self.table[(s + 7 * i) % 97] for i, s in enumerate(sums)][first:])

    def branches(self, forks):
        self.batches.append(list(forks))
        for fork in forks:
            for branch in fork.branches:
                tokens = [*fork.stem, *branch[:-1]]
                yield self.logits(tokens, len(fork.stem) - 1)


def one_by_one(runtime, item):
    """log p(choice | context), a sequence at a time, by the definition."""
    sums = []
    for context, choice in zip(item.contexts, item.choices, strict=True):
        stem, branch = encode(runtime, context, f" {choice}")
        logits = runtime.logits([*stem, *branch][:-1], len(stem) - 1).astype("f8")
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        sums.append(sum(math.log(row[token]) for row, token in zip(p, branch, strict=True)))
    return sums


@pytest.mark.parametrize("bos", [None, 3])
@pytest.mark.parametrize("sequences", [4, 8])
def test_likelihoods_equal_those_of_one_sequence_at_a_time(bos, sequences):
    runtime = Table(bos, sequences=sequences)
    found = list(log_likelihoods(runtime, ITEMS))
    for item, sums in zip(ITEMS, found, strict=True):
        np.testing.assert_allclose(sums, one_by_one(runtime, item), rtol=1e-12)
    for batch in runtime.batches:
        assert sum(fork.sequences for fork in batch) <= sequences
        assert all(fork.stem[0] == bos for fork in batch if bos is not None)
    assert len(runtime.batches) < len(ITEMS) + 1 or sequences == 4


def test_spaces_at_the_end_of_a_context_belong_to_the_choice():
    runtime = Table()
    stem, branch = encode(runtime, "ab  ", " c")
    assert stem == tuple(runtime.tokenize("ab"))
    assert branch == tuple(runtime.tokenize("   c"))


def test_an_item_too_long_for_the_context_is_an_error_before_anything_runs():
    runtime = Table(context=20)
    with pytest.raises(EdgepackError, match="tokens do not fit into the context of 20"):
        list(log_likelihoods(runtime, ITEMS))
    assert not runtime.batches


def test_acc_takes_the_likeliest_and_acc_norm_the_likeliest_per_character():
    item = Item.from_context("a", ["bb", "cccc"], 1)
    found = Answers.from_likelihoods(
        [item, item, item], [[-3.0, -4.0], [-3.0, -2.0], [-1.0, -4.0]], normalised=True
    )
    assert found.plain.tolist() == [0, 1, 0]
    assert found.norm.tolist() == [1, 1, 0]
    assert found.usual is found.norm
    bare = Answers.from_likelihoods([item], [[-3.0, -4.0]], normalised=False)
    assert bare.norm is None
    assert bare.usual is bare.plain


def test_errors_are_the_binomials_and_differences_are_paired():
    a = Answers(np.array([1.0] * 60 + [0.0] * 40), None)
    b = Answers(np.array([1.0] * 58 + [0.0] * 42), None)
    assert Mean.from_items(a.plain).error == pytest.approx(math.sqrt(0.6 * 0.4 / 99))
    assert b.minus(a).value == pytest.approx(-0.02)
    assert b.minus(a).error == pytest.approx(math.sqrt(0.02 * 0.98 / 99))
    both = Mean.average([Mean(0.5, 0.03), Mean(0.7, 0.04)])
    assert (both.value, both.error) == (pytest.approx(0.6), pytest.approx(0.025))


def test_models_are_open_one_at_a_time_and_progress_counts_all_items():
    opened = []

    @contextmanager
    def open_table():
        assert not opened
        opened.append(1)
        yield Table()
        opened.clear()

    steps = answer({"a": open_table, "b": open_table}, {"copa": ITEMS, "piqa": ITEMS[:2]})
    seen = list(steps)
    assert {step.total for step in seen} == {12}
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert seen[-1].done == 12
    found = finish(answer({"a": open_table}, {"copa": ITEMS, "piqa": ITEMS[:2]}))
    assert found["a"]["copa"].norm is None
    assert found["a"]["piqa"].norm.shape == (2,)


tokens = st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple)
some_forks = st.lists(st.builds(Fork, tokens, st.lists(tokens, min_size=1, max_size=4).map(tuple)))


@pytest.mark.slow
@given(some_forks)
@settings(max_examples=100, deadline=None)
def test_every_branch_sees_its_stem_and_itself_and_nothing_else(forks):
    steps, rows = layout(forks)
    assert len(steps) == sum(fork.tokens for fork in forks)
    wanted = [i for i, step in enumerate(steps) if step.has_logits]
    branches = [(fork.stem, branch) for fork in forks for branch in fork.branches]
    for (stem, branch), at in zip(branches, rows, strict=True):
        assert len(at) == len(branch)
        for n, row in enumerate(at):
            last = steps[wanted[row]]
            own = last.sequences[0]
            seen = [s for s in steps[: wanted[row] + 1] if own in s.sequences]
            assert [s.token for s in seen] == [*stem, *branch[:n]]
            assert [s.position for s in seen] == list(range(len(seen)))
            assert set(last.sequences) <= set(seen[0].sequences)


@pytest.mark.slow
@given(some_forks, st.integers(1, 12), st.integers(4, 8))
@settings(max_examples=100, deadline=None)
def test_batches_keep_the_order_and_the_limits(forks, room, sequences):
    batches = list(pack(forks, room, sequences))
    assert [fork for batch in batches for fork in batch] == forks
    for batch in batches:
        assert len(batch) == 1 or sum(fork.tokens for fork in batch) <= room
        assert sum(fork.sequences for fork in batch) <= sequences


def test_a_fork_without_a_token_is_refused():
    for stem, branches in (((), ((1,),)), ((1,), ()), ((1,), ((),))):
        with pytest.raises(ValueError, match="none of them empty"):
            Fork(stem, branches)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model as float32."""
    pytest.importorskip("llama_cpp")
    folder = tmp_path_factory.mktemp("choices")
    make_model(folder / "hf")
    write_gguf(folder / "model.gguf", open_checkpoint(str(folder / "hf")))
    return folder / "model.gguf"


@pytest.mark.llama
def test_llama_cpp_decodes_a_packed_batch_as_it_decodes_one_sequence(model):
    from edgepack.runtimes.llama_cpp import LlamaCpp

    with LlamaCpp(model, context=256, sequences=16) as many, LlamaCpp(model, context=256) as one:
        found = list(log_likelihoods(many, ITEMS * 3))
        expected = [one_by_one(one, item) for item in ITEMS]
        tokens = many.tokenize("The quick brown fox")
        np.testing.assert_allclose(many.logits(tokens), one.logits(tokens), atol=1e-4)
    for item, sums in zip(expected * 3, found, strict=True):
        np.testing.assert_allclose(sums, item, atol=0.02)  # keys and values are float16
    assert np.std([sums[0] for sums in found]) > 1


@pytest.mark.llama
def test_llama_cpp_refuses_more_than_it_has_room_for(model):
    from edgepack.runtimes.llama_cpp import LlamaCpp

    with LlamaCpp(model, context=16, sequences=2) as runtime:
        fork = Fork((1, 2), ((3, 4), (5, 6)))
        assert [x.shape for x in runtime.branches([fork])] == [(2, runtime.vocab_size)] * 2
        with pytest.raises(EdgepackError, match="4 sequences do not fit into the 2"):
            list(runtime.branches([fork, fork]))
        with pytest.raises(EdgepackError, match="do not fit into the context of 16"):
            list(runtime.branches([Fork((1,) * 16, ((2, 3),))]))


def test_the_harness_gets_likelihoods_in_its_order(monkeypatch):
    harness = types.ModuleType("lm_eval.api.model")
    harness.LM = type("LM", (), {})
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", harness)
    monkeypatch.delitem(sys.modules, "edgepack.metrics.harness", raising=False)
    module = importlib.import_module("edgepack.metrics.harness")
    monkeypatch.delitem(sys.modules, "edgepack.metrics.harness")
    runtime = Table()
    pairs = [(c, f" {x}") for i in ITEMS for c, x in zip(i.contexts, i.choices, strict=True)]
    runtime.table[:, ord("q") % 64] += 50
    pairs.append(("what?", "qq"))
    model = module.HarnessModel(runtime)
    found = model.loglikelihood([types.SimpleNamespace(args=pair) for pair in pairs])
    expected = [value for item in ITEMS for value in one_by_one(runtime, item)]
    np.testing.assert_allclose([value for value, _ in found[:-1]], expected)
    assert [greedy for _, greedy in found] == [False] * len(expected) + [True]
    for refused in (model.generate_until, model.loglikelihood_rolling):
        with pytest.raises(EdgepackError, match="not supported"):
            refused([])
    with pytest.raises(EdgepackError, match="no context"):
        model.loglikelihood([types.SimpleNamespace(args=("", "a"))])


def test_without_the_harness_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "edgepack.metrics.harness", raising=False)
    with pytest.raises(RuntimeMissingError) as error:
        importlib.import_module("edgepack.metrics.harness")
    assert error.value.hint == "pip install 'edgepack[lm-eval]'"
