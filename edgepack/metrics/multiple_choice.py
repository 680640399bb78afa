"""Multiple choice by likelihood: a model's answer is the choice that it gives the most probability.

Scored as in lm-evaluation-harness: log p(choice | context) is summed over the choice's tokens;
`acc` takes the largest sum, `acc_norm` the largest sum per character of the choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from edgepack.core.progress import Progress, Steps
from edgepack.errors import while_doing
from edgepack.metrics.divergence import log_probabilities, standard_error
from edgepack.metrics.tasks import TASKS, Item
from edgepack.runtimes.base import Scorer, tokenize_prefix
from edgepack.runtimes.forks import Fork, check_fits, pack

CONTEXT = 2048
"""Context that a runtime needs for the tasks here; BoolQ's longest passages take about half."""
SEQUENCES = 32
"""Choices decoded together."""
_BATCH = (
    512  # tokens decoded together: llama.cpp's micro-batch; larger batches are split into these
)

Open = Callable[[], AbstractContextManager[Scorer]]


@dataclass(frozen=True)
class Mean:
    """A share of right answers, or a difference of two, and its standard error."""

    value: float
    error: float

    @staticmethod
    def from_items(values: NDArray[np.float64]) -> Mean:
        """Mean over items."""
        return Mean(float(values.mean()), standard_error(values))

    @staticmethod
    def average(means: Sequence[Mean]) -> Mean:
        """Unweighted mean over tasks, whose errors are independent."""
        error = math.sqrt(sum(mean.error**2 for mean in means)) / len(means)
        return Mean(sum(mean.value for mean in means) / len(means), error)


@dataclass(frozen=True)
class Answers:
    """Whether each item of a task was answered correctly (1) or not (0), ``[items]`` float64;
    `norm` by likelihood per character, None if the harness does not report that."""

    plain: NDArray[np.float64]
    norm: NDArray[np.float64] | None

    @staticmethod
    def from_likelihoods(
        items: Sequence[Item], likelihoods: Sequence[Sequence[float]], *, normalised: bool
    ) -> Answers:
        """Answers from the log-likelihoods of every item's choices."""
        plain, norm = [], []
        for item, found in zip(items, likelihoods, strict=True):
            lengths = np.array([len(choice) for choice in item.choices])
            plain.append(float(np.argmax(found) == item.gold))
            norm.append(float(np.argmax(np.array(found) / lengths) == item.gold))
        return Answers(np.array(plain), np.array(norm) if normalised else None)

    @property
    def usual(self) -> NDArray[np.float64]:
        """The variant that tables print: `acc_norm` if there is one."""
        return self.plain if self.norm is None else self.norm

    def minus(self, other: Answers) -> Mean:
        """The usual accuracy minus another model's on the same items. The error is that of paired
        differences; it is far below the errors of both accuracies where the models mostly agree."""
        return Mean.from_items(self.usual - other.usual)


def answer(
    models: Mapping[str, Open], tasks: Mapping[str, Sequence[Item]]
) -> Steps[dict[str, dict[str, Answers]]]:
    """Every model's answers to every task; one model is open at a time."""
    total, done = len(models) * sum(map(len, tasks.values())), 0
    answers: dict[str, dict[str, Answers]] = {name: {} for name in models}
    for name, open_model in models.items():
        with open_model() as runtime:
            for task, items in tasks.items():
                found = []
                yield Progress("tasks", done, total, f"{task}, {name}")
                with while_doing(f"asking {task}"):
                    for likelihoods in log_likelihoods(runtime, items):
                        found.append(likelihoods)
                        done += 1
                        yield Progress("tasks", done, total, f"{task}, {name}")
                normalised = TASKS[task].normalised
                answers[name][task] = Answers.from_likelihoods(items, found, normalised=normalised)
    return answers


def log_likelihoods(runtime: Scorer, items: Sequence[Item]) -> Iterator[list[float]]:
    """log p(choice | context) of every item's choices, in nats."""
    pairs = [
        (context, f" {choice}")
        for item in items
        for context, choice in zip(item.contexts, item.choices, strict=True)
    ]
    scored = score(runtime, pairs)
    for item in items:
        yield [next(scored)[0] for _ in item.choices]


def score(runtime: Scorer, pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[float, bool]]:
    """For every (context, continuation): its log-likelihood in nats, and whether each of its tokens
    is the likeliest. The context of neighbours that share it is computed once, and several contexts
    are decoded together."""
    encoded = [encode(runtime, context, continuation) for context, continuation in pairs]
    grouped = groupby(encoded, key=lambda pair: pair[0])
    forks = [Fork(stem, tuple(branch for _, branch in found)) for stem, found in grouped]
    for fork in forks:
        check_fits([fork], runtime.context, runtime.sequences)
    for batch in pack(forks, min(_BATCH, runtime.context), runtime.sequences):
        branches = [branch for fork in batch for branch in fork.branches]
        for branch, logits in zip(branches, runtime.branches(batch), strict=True):
            greedy = bool((logits.argmax(-1) == branch).all())
            yield float(log_probabilities(logits, branch).sum()), greedy


def encode(
    runtime: Scorer, context: str, continuation: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens of a context and of its continuation, split as in the harness. Spaces at the context's
    end belong to the continuation; its tokens are those of the whole text after the context's. BOS
    comes first if the model file says that texts start with it."""
    whole = tokenize_prefix(runtime, context + continuation)
    stem = tokenize_prefix(runtime, context.rstrip())
    return tuple(stem), tuple(whole[len(stem) :])
