"""Cross-entropy of the head, and its gradient, a chunk of the vocabulary at a time.

The logits of 128 tokens over 49,152 words are 25 MB, and softmax would need them several times. So
the first pass keeps of every chunk only the largest logit and the sum of exponentials (Milakov and
Gimelshein, arXiv 1805.02867); the second computes the chunk's logits again, for the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgepack.checkpoint.base import Dimensions
from edgepack.export._onnx_graph import kind
from edgepack.finetune.graph.builder import TrainingGraph
from edgepack.finetune.graph.matrices import Matrix

IGNORED = -100
"""The label of tokens that do not count."""


class Loss:
    """Mean cross-entropy in nats of hidden states ``[batch, time, hidden]`` (after the last norm)
    against ``labels [batch, time]``, which name each position's next token. Products with the head
    become logits as `dimensions` say: scaled, and softly capped."""

    def __init__(
        self, graph: TrainingGraph, head: Matrix, bias: str | None, dimensions: Dimensions
    ) -> None:
        self.graph, self.head, self.bias = graph, head, bias
        self.scale, self.cap = dimensions.logit_scale, dimensions.logit_softcap

    def add(self, states: str) -> tuple[str, str]:
        """(the loss, a number; its gradient at the states)."""
        g = self.graph
        g.scope = "loss"
        self.states = g.add("Reshape", states, g.whole(1, -1, self.head.spec.shape[1]))
        self._read_labels()
        logsumexp = self._logsumexp()
        picked, rows = self._picked()
        losses = g.add("Mul", g.add("Sub", logsumexp, picked), self.shares)
        loss = g.add("ReduceSum", losses, keepdims=0)
        at_label = g.add("Mul", rows, self._sloped(self.shares, picked))
        return loss, self._gradient(states, logsumexp, at_label)

    def _read_labels(self) -> None:
        """Each label (0 if it is ignored) ``[tokens]``, and its share of the mean ``[1, tokens,
        1]``."""
        g = self.graph
        labels = g.add("Reshape", "labels", g.whole(-1))
        ignored = g.add("Equal", labels, g.constant(IGNORED, np.int64))
        counts = g.add("Cast", g.add("Not", ignored), to=kind(np.float32))
        number = g.add("Max", g.add("ReduceSum", counts, keepdims=0), g.number(1))
        self.labels = g.add("Where", ignored, g.constant(0, np.int64), labels)
        self.shares = g.add("Reshape", g.add("Div", counts, number), g.whole(1, -1, 1))

    def _chunks(self, after: list[str]) -> Iterator[tuple[str, str]]:
        """(rows of the head, their logits ``[1, tokens, rows]``), each when the last of `after` is
        known."""
        g = self.graph
        for start, stop in self.head.Q.chunks():
            rows = self.head.rows(start, stop, after[-1])
            logits = g.add("FusedMatMul", self.states, rows, transB=1)
            if self.bias is not None:
                logits = g.add("Add", logits, g.slice(self.bias, start, stop, 0))
            yield rows, self._finish(logits)

    def _finish(self, product: str) -> str:
        """Products with the head → logits."""
        g = self.graph
        if self.scale != 1.0:
            product = g.add("Mul", product, g.number(self.scale))
        return product if self.cap is None else g.capped(product, self.cap)

    def _sloped(self, gradient: str, logits: str) -> str:
        """The gradient at logits → that at the products: × scale·(1 − (logit / cap)²)."""
        g = self.graph
        if self.scale != 1.0:
            gradient = g.add("Mul", gradient, g.number(self.scale))
        if self.cap is None:
            return gradient
        share = g.add("Mul", logits, g.number(1 / self.cap))
        slope = g.add("Sub", g.number(1), g.add("Mul", share, share))
        return g.add("Mul", gradient, slope)

    def _logsumexp(self) -> str:
        """log Σ exp of every token's logits, ``[1, tokens, 1]``."""
        g, most, total = self.graph, "", ""
        after = [self.states]
        for _, logits in self._chunks(after):
            largest = g.add("ReduceMax", logits, g.whole(-1), keepdims=1)
            new = g.add("Max", most, largest) if most else largest
            exps = g.add("Exp", g.add("Sub", logits, new))
            added = g.add("ReduceSum", exps, g.whole(-1), keepdims=1)
            if most:
                shrunk = g.add("Mul", total, g.add("Exp", g.add("Sub", most, new)))
                added = g.add("Add", shrunk, added)
            most, total = new, added
            after.append(total)
        return g.add("Add", most, g.add("Log", total))

    def _picked(self) -> tuple[str, str]:
        """The logit of every label ``[1, tokens, 1]``, and the head's row of it ``[tokens,
        hidden]``."""
        g = self.graph
        rows = self.head.gather(self.labels, self.states)
        products = g.add("Mul", self.states, rows)
        picked = g.add("ReduceSum", products, g.whole(-1), keepdims=1)
        if self.bias is not None:
            own = g.add("Gather", self.bias, self.labels, axis=0)
            picked = g.add("Add", picked, g.add("Reshape", own, g.whole(1, -1, 1)))
        return self._finish(picked), rows

    def _gradient(self, states: str, logsumexp: str, at_label: str) -> str:
        """(softmax − one-hot)·W, in the shape of the states; `at_label` is one-hot·W."""
        g = self.graph
        total = g.add("Neg", at_label)
        after = [g.wait(total, logsumexp)]
        for weights, logits in self._chunks(after):
            probabilities = g.add("Exp", g.add("Sub", logits, logsumexp))
            part = self._sloped(g.add("Mul", probabilities, self.shares), logits)
            after.append(g.add("Add", after[-1], g.add("MatMul", part, weights)))
        return g.add("Reshape", after[-1], g.add("Shape", states))
