"""Tokens per second of models, measured in turns so that a busy moment affects all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from edgepack.core.progress import Progress, Steps
from edgepack.runtimes.base import Runtime, Sampling, tokenize_prefix

PROMPT, ANSWER, ROUNDS = 128, 32, 3
TEXT = "The quick brown fox jumps over the lazy dog. "


@dataclass(frozen=True)
class Speed:
    """Medians, in tokens per second: reading a prompt, and writing one token after another."""

    prompt: float
    decode: float


def speeds(
    models: Mapping[str, Callable[[int], Runtime]], rounds: int = ROUNDS
) -> Steps[dict[str, Speed]]:
    """Speed of each model; the functions that open them take the length of the context. A round
    runs every model once, on `PROMPT` tokens and `ANSWER` more. Only one is in memory at a time."""
    found: dict[str, list[Speed]] = {name: [] for name in models}
    for done in range(rounds):
        for name, open_ in models.items():
            yield Progress("speed", done, rounds, name)
            with open_(PROMPT + ANSWER) as runtime:
                found[name].append(_once(runtime))
    return {
        name: Speed(median(s.prompt for s in turns), median(s.decode for s in turns))
        for name, turns in found.items()
    }


def _once(runtime: Runtime) -> Speed:
    tokens = tokenize_prefix(runtime, TEXT * PROMPT)[:PROMPT]
    runtime.logits(tokens[:2])  # warm-up: loads pages, starts threads
    start = time.perf_counter()
    answer = runtime.generate(tokens, ANSWER, Sampling(ignore_eos=True))
    times = [time.perf_counter() for _ in answer]
    return Speed(len(tokens) / (times[0] - start), (len(times) - 1) / (times[-1] - times[0]))
