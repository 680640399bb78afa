"""GLUE's CoLA and RTE as numbers, and the small transformers that `benchmarks.int4` trains on them.

No pretrained model is used: words are the most frequent of the training part, weights are random.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, LAYERS = 64, 4, 2
WORDS, LENGTH = 1000, 48
"""Most frequent words that are kept, and words of a row; a first sentence that is longer is cut."""
PAD, UNKNOWN, BETWEEN, NO, YES, RESERVED = 0, 1, 2, 3, 4, 5
"""Numbers of words that are none: filling, rare words, the end of a sentence, and both labels."""


class Example(NamedTuple):
    """Words (two sentences with `BETWEEN` between them) and the label."""

    words: list[int]
    label: int


@dataclass(frozen=True)
class Task:
    """Rows of a task, as numbers."""

    name: str
    train: list[Example]
    dev: list[Example]

    @property
    def majority(self) -> float:
        """Accuracy of always answering the label that is more frequent in training."""
        answer = Counter(e.label for e in self.train).most_common(1)[0][0]
        return mean(e.label == answer for e in self.dev)


def read_task(name: str, data: Path) -> Task:
    """CoLA or RTE. Their quotes are plain characters, so lines are split by hand."""
    folder = data / "finetune" / name.lower()

    def rows(file: str) -> list[list[str]]:
        return [line.split("\t") for line in (folder / file).read_text("utf-8").split("\n") if line]

    if name == "CoLA":
        parts = [rows(f"{part}.tsv") for part in ("in_domain_train", "in_domain_dev")]
        parts[1] += rows("out_of_domain_dev.tsv")
        texts = [[((sentence,), label == "1") for _, label, _, sentence in part] for part in parts]
    else:
        parts = [rows(f"{part}.tsv")[1:] for part in ("train", "dev")]
        texts = [[((a, b), label == "entailment") for _, a, b, label in part] for part in parts]
    counts = Counter(w for sentences, _ in texts[0] for s in sentences for w in split_words(s))
    numbers = {w: RESERVED + i for i, (w, _) in enumerate(counts.most_common(WORDS - RESERVED))}

    def example(sentences: tuple[str, ...], label: bool) -> Example:
        coded = [[numbers.get(w, UNKNOWN) for w in split_words(s)] for s in sentences]
        room = LENGTH - 2 - sum(len(c) for c in coded[1:])
        words = coded[0][: max(0, room)]
        for more in coded[1:]:
            words += [BETWEEN, *more]
        return Example(words[: LENGTH - 1], int(label))

    train, dev = ([example(s, label) for s, label in part] for part in texts)
    return Task(name, train, dev)


def split_words(text: str) -> list[str]:
    """Lower-case words; punctuation stands alone."""
    spaced = "".join(c if c.isalnum() or c == "'" else f" {c} " for c in text.lower())
    return spaced.split()


class Block(nn.Module):
    """Attention and a feed-forward part, each after a norm and added to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, length, _ = x.shape
        qkv = self.qkv(self.norms[0](x)).view(n, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*qkv, attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).reshape(n, length, WIDTH))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    """Words ``[n, length]`` → logits: ``[n, 2]`` of labels, or ``[n, length, WORDS]`` if causal."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH + 1, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS if causal else 2)

    def forward(self, words: Tensor) -> Tensor:
        length, real = words.shape[1], words != PAD
        mask = real[:, None, None]
        if self.causal:
            mask = mask & torch.ones(length, length, dtype=torch.bool).tril()
        x = self.words(words) + self.places(torch.arange(length))
        for block in self.blocks:
            x = block(x, mask)
        if not self.causal:
            x = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        return self.head(self.norm(x))


def batch_of(examples: list[Example], causal: bool) -> tuple[Tensor, Tensor]:
    """Words, and labels ``[n]``. If causal, words end with that of the label."""
    ends = [[BETWEEN, YES if e.label else NO] if causal else [] for e in examples]
    rows = [torch.tensor(e.words + end) for e, end in zip(examples, ends, strict=True)]
    words = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    return words, torch.tensor([e.label for e in examples])


def losses(model: Transformer, examples: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss, the answers and the labels."""
    words, labels = batch_of(examples, model.causal)
    if not model.causal:
        logits = model(words)
        return functional.cross_entropy(logits, labels), logits.argmax(1), labels
    logits, targets = model(words[:, :-1]), words[:, 1:]
    loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD)
    at = (targets != PAD).sum(1) - 1
    last = logits[torch.arange(len(at)), at]
    return loss, (last[:, YES] > last[:, NO]).long(), labels
