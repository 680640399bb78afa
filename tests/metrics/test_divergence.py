"""Divergence: its arithmetic against torch's own, its chunking against llama-perplexity's rules."""

import math

import numpy as np
import pytest
import torch

from edgepack.core.progress import finish
from edgepack.errors import EdgepackError
from edgepack.metrics.divergence import chunk, compare, divergence, perplexity


class Table:
    """A runtime whose logits are a fixed function of position and token."""

    def __init__(self, seed, vocab=50, bos=None):
        self.table = np.random.default_rng(seed).normal(0, 3, (64, vocab, vocab)).astype("f4")
        self.bos, self.vocab_size, self.asked = bos, vocab, []

    def logits(self, tokens, first=0):
        self.asked.append(len(tokens))
        return np.stack([self.table[i, t] for i, t in enumerate(tokens)][first:])

    def tokenize(self, text, *, bos=True, special=False):
        start = [self.bos] if bos and self.bos is not None else []
        return start + [ord(c) % self.vocab_size for c in text]


def direct(reference, candidate, targets):
    """The same quantities by torch's loss functions, in float64 throughout."""
    p, q = torch.tensor(reference).double(), torch.tensor(candidate).double()
    kl = torch.nn.functional.kl_div(
        q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    nll = torch.nn.functional.cross_entropy(q, torch.tensor(targets), reduction="none")
    return nll.numpy(), kl.numpy(), (p.argmax(-1) == q.argmax(-1)).double().numpy()


def test_positions_equal_torchs_losses():
    rng = np.random.default_rng(0)
    a = rng.normal(0, 4, (100, 300)).astype("f4")
    b = a + rng.normal(0, 0.5, a.shape).astype("f4")
    targets = rng.integers(0, 300, 100)
    nll, kl, agree = direct(a, b, targets)
    found = compare(a, b, targets)
    np.testing.assert_allclose(found.nll, nll, rtol=1e-12)
    np.testing.assert_allclose(found.reference_nll, direct(a, a, targets)[0], rtol=1e-12)
    np.testing.assert_allclose(found.kl, kl, atol=1e-12)
    np.testing.assert_array_equal(found.agree, agree)


def test_small_divergence_is_not_lost_in_rounding():
    # float32 would leave noise of 1e-6 here; second order: KL ≈ Var_p(δ) / 2
    rng = np.random.default_rng(1)
    a = (rng.normal(0, 4, (8, 5000)) + 1000).astype("f4")
    b = a.copy()
    b[:, 0] += 0.001  # exactly representable step at 1000 ± 6e-5
    delta = b[:, 0].astype("f8") - a[:, 0]
    p0 = torch.tensor(a).double().softmax(-1)[:, 0].numpy()
    found = compare(a, b, np.zeros(8, int))
    np.testing.assert_allclose(found.kl, p0 * (1 - p0) * delta**2 / 2, rtol=1e-3, atol=1e-15)
    assert compare(a, a, np.zeros(8, int)).summary().kl_max == 0


def test_forbidden_tokens_do_not_make_nan():
    a = np.array([[0.0, 1.0, -np.inf]], "f4")
    found = compare(a, a, np.array([1]))
    assert found.kl[0] == 0


def test_summary_has_the_standard_errors_of_means():
    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 2, (2, 500, 40)).astype("f4")
    targets = rng.integers(0, 40, 500)
    nll, kl, agree = direct(a, b, targets)
    s = compare(a, b, targets).summary()
    assert s.positions == 500
    assert s.perplexity == pytest.approx(math.exp(nll.mean()))
    assert s.kl_mean == pytest.approx(kl.mean())
    assert s.kl_error == pytest.approx(kl.std(ddof=1) / math.sqrt(500))
    assert s.kl_p999 == pytest.approx(np.quantile(kl, 0.999))
    assert s.kl_max == pytest.approx(kl.max())
    share = agree.mean()  # llama-perplexity: sqrt(p (1 − p) / (n − 1))
    assert s.top1 == share
    assert s.top1_error == pytest.approx(math.sqrt(share * (1 - share) / 499))
    assert set(s.as_dict()) >= {"perplexity", "kl_mean", "top1"}


def test_divergence_uses_the_second_half_of_every_chunk():
    reference, other = Table(0), Table(1)
    chunks = np.random.default_rng(3).integers(0, 50, (3, 16))
    found = finish(divergence(reference, {"other": other, "self": reference}, chunks))
    rows = [(reference.logits(c), other.logits(c), c) for c in chunks]
    a = np.concatenate([r[8:15] for r, _, _ in rows])
    b = np.concatenate([o[8:15] for _, o, _ in rows])
    targets = np.concatenate([c[9:16] for _, _, c in rows])
    nll, kl, _ = direct(a, b, targets)
    assert found["other"].positions == 3 * 7
    assert found["other"].kl_mean == pytest.approx(kl.mean())
    assert found["other"].perplexity == pytest.approx(math.exp(nll.mean()))
    assert found["self"].kl_max == 0
    assert found["self"].top1 == 1


def test_perplexity_alone_is_that_beside_a_reference():
    one, other = Table(0), Table(1)
    chunks = np.random.default_rng(4).integers(0, 50, (5, 16))
    beside = finish(divergence(one, {"other": other}, chunks))["other"]
    alone = finish(perplexity({"one": one, "other": other}, chunks))
    assert alone["other"].positions == beside.positions
    assert alone["other"].perplexity == pytest.approx(beside.perplexity)
    assert alone["one"].perplexity_error == pytest.approx(beside.reference_perplexity_error)
    nll = np.concatenate([direct(*[other.logits(c)[8:15]] * 2, c[9:16])[0] for c in chunks])
    error = math.exp(nll.mean()) * nll.std(ddof=1) / math.sqrt(nll.size)
    assert alone["other"].perplexity_error == pytest.approx(error)


def test_chunks_start_with_bos_only_where_the_model_does():
    text = "abcdefghijklmnopqrstuvwxyz"
    plain, started = Table(0), Table(0, bos=7)
    tokens = plain.tokenize(text)
    np.testing.assert_array_equal(chunk(plain, text, 8), np.array(tokens[:24]).reshape(3, 8))
    found = chunk(started, text, 8, limit=2)
    assert found[:, 0].tolist() == [7, 7]
    # BOS was put before the text, and replaces the first token of the later chunks
    assert found[0, 1:].tolist() == tokens[:7]
    assert found[1, 1:].tolist() == tokens[8:15]


def test_a_text_shorter_than_a_chunk_is_one_clear_error():
    with pytest.raises(EdgepackError, match="has 3 tokens, one chunk needs 8"):
        chunk(Table(0), "abc", 8)
