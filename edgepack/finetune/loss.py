"""Cross-entropy and KL over a large vocabulary, a run of the output matrix's rows at a time.

The logits of all tokens are never in memory together: log Σ exp is accumulated over the runs, and
the gradient needs each run's logits once more (as in Cut Cross-Entropy, arXiv 2411.09009).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgepack.core.accelerator import wide
from edgepack.finetune.frozen import PackedHead
from edgepack.model.decoder import slope

LOGITS_AT_ONCE = 1 << 21
"""Elements of the logits in memory at once (8 MB), and at most as many of the output matrix."""


@dataclass(frozen=True)
class LossGradient:
    """Σ cross-entropy in nats, how many of the labels are the likeliest token, and the gradient of
    the sum at the hidden states ``[n, hidden]``."""

    total: float
    hits: int
    hidden: Tensor | None = None

    @property
    def gradient(self) -> Tensor:
        """`hidden`, where it was asked for."""
        if self.hidden is None:
            raise ValueError("no gradient was asked for")
        return self.hidden


def rows_at_once(head: PackedHead, tokens: int) -> int:
    """Rows of the output matrix in one run."""
    widest = max(tokens, head.dimensions.hidden_size)
    return min(head.vocab, max(64, LOGITS_AT_ONCE // widest))


def cross_entropy(
    head: PackedHead, x: Tensor, labels: Tensor, *, gradient: bool = True
) -> LossGradient:
    """Of hidden states x ``[n, hidden]`` before the final norm, for labels ``[n]``."""
    x = x.detach().requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        normed = head.normalize(x)
    h = normed.detach()
    rows = rows_at_once(head, len(h))
    logsum, best = (h.new_full((len(h),), -torch.inf) for _ in range(2))
    at_label = h.new_empty(len(h))
    for part, W, bias in head.chunks(rows):
        logits = head.logits(h, W, bias)
        logsum = torch.logaddexp(logsum, logits.logsumexp(-1))
        best = best.maximum(logits.amax(-1))
        mine = (labels >= part.start) & (labels < part.stop)
        at_label[mine] = logits[mine, labels[mine] - part.start]
    total = float(wide(logsum - at_label).sum())
    hits = int((at_label >= best).sum())
    if not gradient:
        return LossGradient(total, hits)
    at_h = torch.zeros_like(h)
    for part, W, bias in head.chunks(rows):
        logits = head.logits(h, W, bias)
        p = (logits - logsum[:, None]).exp_()
        mine = (labels >= part.start) & (labels < part.stop)
        p[mine, labels[mine] - part.start] -= 1
        p *= slope(logits, head.dimensions)
        at_h.addmm_(p, W)
    (at_x,) = torch.autograd.grad(normed, x, at_h)
    return LossGradient(total, hits, at_x)


def divergence(
    head: PackedHead, x: Tensor, before: Tensor, *, gradient: bool = True
) -> LossGradient:
    """Σ KL(before ‖ now) in nats over tokens, from hidden states before the final norm, both
    ``[n, hidden]``: `before` of the untuned model, x of the tuned one, at which the gradient is.
    `hits` counts tokens with the same likeliest next token."""
    x = x.detach().requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        normed = head.normalize(x)
    with torch.no_grad():
        now, then = normed.detach(), head.normalize(before)
        rows = rows_at_once(head, len(now))
        sums = [now.new_full((len(now),), -torch.inf) for _ in range(2)]
        best = [now.new_full((len(now),), -torch.inf) for _ in range(2)]
        place = [now.new_zeros(len(now), dtype=torch.long) for _ in range(2)]
        for part, W, bias in head.chunks(rows):
            for i, h in enumerate((now, then)):
                logits = head.logits(h, W, bias)
                sums[i] = torch.logaddexp(sums[i], logits.logsumexp(-1))
                most, where = logits.max(-1)
                place[i] = torch.where(most > best[i], where + part.start, place[i])
                best[i] = best[i].maximum(most)
        total, at_h = 0.0, torch.zeros_like(now)
        for _, W, bias in head.chunks(rows):
            logits = head.logits(now, W, bias)
            log_q = logits - sums[0][:, None]
            log_p = head.logits(then, W, bias) - sums[1][:, None]
            p = log_p.exp()
            total += float(wide(p * (log_p - log_q)).sum())
            if gradient:
                g = log_q.exp_().sub_(p).mul_(slope(logits, head.dimensions))
                at_h.addmm_(g, W)
    hits = int((place[0] == place[1]).sum())
    if not gradient:
        return LossGradient(total, hits)
    (at_x,) = torch.autograd.grad(normed, x, at_h)
    return LossGradient(total, hits, at_x)
