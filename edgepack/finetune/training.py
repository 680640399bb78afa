"""The loop: AdamW on random examples, looks at those held out, and a state to go on from.

Nothing that a step does depends on what ran before it in this process: the order of the examples,
dropout and random rounding follow from the seed and the step. So a killed run that goes on from its
last saved state makes the very losses that the whole run would have made.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from torch import Tensor

from edgepack.core.accelerator import wide
from edgepack.core.hardware import trim_memory
from edgepack.core.progress import Progress, Steps
from edgepack.core.weight_files import load_tensors, save_tensors
from edgepack.errors import EdgepackError
from edgepack.finetune.activations import Kind
from edgepack.finetune.adamw import AdamW
from edgepack.finetune.batches import micro_batches
from edgepack.finetune.examples import Example
from edgepack.finetune.frozen import FrozenModel, Pair
from edgepack.finetune.gradient import Score, backward, hidden, score
from edgepack.finetune.trained import Masters, Trained, undropped
from edgepack.recipe.training import Finetune
from edgepack.recover.adam import schedule
from edgepack.recover.training import order

SAVE_EVERY = 15.0
"""Seconds between saved states; a killed run repeats at most so much."""
Gradients = dict[str, Tensor]


@dataclass
class Curve:
    """What a run did: the loss of every step in nats a learnt token, what the held-out examples
    lost as (steps made, loss, share of likeliest tokens), why it ended (``steps`` or
    ``patience``), and tokens and seconds of all steps."""

    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float, float]] = field(default_factory=list)
    stopped: str | None = None
    tokens: int = 0
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Steps made."""
        return len(self.losses)

    @property
    def best(self) -> int:
        """Steps made when the held-out examples lost least; all of them if there are none."""
        if not self.held_out:
            return self.steps
        return min(self.held_out, key=lambda look: look[1])[0]

    @property
    def tokens_per_second(self) -> float:
        """Tokens that were trained on, prompts and general text included, a second."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Data:
    """Examples to learn, those that judge, and general text to go on knowing."""

    learnt: Sequence[Example]
    held_out: Sequence[Example] = ()
    replay: Sequence[Example] = ()


@dataclass
class Run:
    """One training run. `positions` are those of a micro-batch."""

    model: FrozenModel
    trained: Trained
    data: Data
    options: Finetune
    path: Path
    """Of the saved state."""
    kind: Kind = "memory"
    positions: int = 512
    curve: Curve = field(default_factory=Curve)
    teachers: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        o = self.options
        self.rule = AdamW(o.learning_rate, o.weight_decay, states=o.optimizer_states)
        self.states = {key: self.rule.initial(p) for key, p in self.trained.masters.items()}
        self.best: Masters = {}
        self.lowest = min(self._block(name) for name in self.trained.names)
        self._saved = time.monotonic()

    @property
    def steps(self) -> int:
        """Steps to make."""
        o = self.options
        size = min(o.batch_size, len(self.data.learnt))
        return o.steps or math.ceil(o.epochs * len(self.data.learnt) / size)

    def train(self) -> Steps[Curve]:
        """Make the steps that are left; afterwards the masters are the best ones."""
        self.resume()
        while self.curve.stopped is None:
            yield Progress("finetune", self.curve.steps, self.steps, self._label())
            if self._is_due():
                self._look()
                self.save()
            else:
                self._timed_step()
                if time.monotonic() - self._saved > SAVE_EVERY:
                    self.save()
        if self.best:
            self.trained.masters = self.best
        return self.curve

    # ------------------------------------------------------------------------ a step

    def _timed_step(self) -> None:
        start = time.monotonic()
        self.step()
        trim_memory()
        self.curve.seconds += time.monotonic() - start

    def step(self) -> None:
        """One step of AdamW."""
        number, o = self.curve.steps, self.options
        self.model.arithmetic.start_step(number)
        self.trained.step = number
        gradients, found = self.gradients(number)
        squares = (float(wide(g.square()).sum()) for g in gradients.values())
        length = math.sqrt(sum(squares))
        if not math.isfinite(length):
            raise EdgepackError(
                f"finetune: the gradient of step {number + 1} is not finite",
                hint="give a smaller learning_rate",
            )
        shrink = min(1.0, o.clip / max(length, 1e-30))
        rate = schedule(number, self.steps, o.warmup_ratio)
        for key, g in gradients.items():
            master, own = self.trained.masters[key], rate * self.trained.unit(key)
            g.mul_(shrink)
            self.states[key] = self.rule.step(master, g, self.states[key], number + 1, own)
        self.curve.losses.append(found.loss)

    def gradients(self, number: int) -> tuple[Gradients, Score]:
        """Those of the mean loss over a step's answers, plus of the mean KL to the untuned
        model over its general text; the score is that of the answers."""
        size = self.options.batch_size
        learnt, seed = self.data.learnt, self.options.seed
        count = min(size, len(learnt))
        own = [learnt[i] for i in order(len(learnt), count, seed, number).tolist()]
        gradients: Gradients = {}
        found = self._add(own, gradients)
        if self.data.replay:
            more = max(1, round(self.options.replay * count))
            places = order(len(self.data.replay), more, seed + 1, number)
            for place in places.tolist():
                self._add([self.data.replay[place]], gradients, 1 / more, self._teacher(place))
        return gradients, found

    def _add(
        self,
        examples: Sequence[Example],
        gradients: Gradients,
        weight: float = 1.0,
        teacher: Tensor | None = None,
    ) -> Score:
        """Add the gradients of the mean loss of some examples, times `weight`."""
        share = weight / sum(example.answers for example in examples)

        def receive(name: str, at_A: Tensor, at_B: Tensor) -> None:
            for part, g in (("lora_A", at_A), ("lora_B", at_B)):
                key = f"{name} {part}"
                if key in gradients:
                    gradients[key].add_(g, alpha=share)
                else:
                    gradients[key] = g.mul_(share)

        self.curve.tokens += sum(len(example.ids) for example in examples)
        total, pairs = Score(), self.trained.pairs
        for batch in micro_batches(examples, self.positions):
            arguments = (self.model, batch, pairs, self.kind, receive, self.lowest, teacher)
            total += backward(*arguments)
        return total

    def _teacher(self, place: int) -> Tensor:
        """The untuned model's last hidden states of a general text."""
        if place not in self.teachers:
            ids = self.data.replay[place].ids[None]
            self.teachers[place] = hidden(self.model, ids, self.trained.without)
        return self.teachers[place]

    def _block(self, name: str) -> int:
        block = self.model.checkpoint.specs[name].block
        assert block is not None  # `targets` names weights of blocks only
        return block

    # ------------------------------------------------------------------------ held-out examples

    def _is_due(self) -> bool:
        """Whether the held-out examples, or the end, are to be looked at now."""
        done, looks = self.curve.steps, self.curve.held_out
        if done >= self.steps:
            return True
        if not self.data.held_out or (looks and looks[-1][0] == done):
            return False
        return done % self.options.evaluate_every == 0

    def _look(self) -> None:
        """Score the held-out examples; keep the best masters; see whether it is the end."""
        curve = self.curve
        if self.data.held_out and (not curve.held_out or curve.held_out[-1][0] != curve.steps):
            found = self.score(self.data.held_out)
            curve.held_out.append((curve.steps, found.loss, found.accuracy))
            if curve.best == curve.steps:
                self.best = {key: value.clone() for key, value in self.trained.masters.items()}
            since = sum(look[0] > curve.best for look in curve.held_out)
            if since >= self.options.patience:
                curve.stopped = "patience"
        if curve.steps >= self.steps:
            curve.stopped = "steps"

    def evaluated(self, name: str) -> list[Pair]:
        """The pairs of a weight as they are now, nothing dropped."""
        return undropped(self.trained.pairs(name))

    def score(self, examples: Sequence[Example], *, tuned: bool = True) -> Score:
        """Of the model as it is now, or as it was packed."""
        pairs = self.evaluated if tuned else self.trained.without
        batches = micro_batches(examples, self.positions)
        return sum((score(self.model, batch, pairs) for batch in batches), Score())

    # ------------------------------------------------------------------------ going on

    def save(self) -> None:
        """Write everything that the next steps depend on."""
        tensors = {f"master/{key}": value for key, value in self.trained.masters.items()}
        tensors |= {f"best/{key}": value for key, value in self.best.items()}
        for key, state in self.states.items():
            tensors |= {f"state/{key}/{part}": value for part, value in state.items()}
        save_tensors(self.path, tensors, asdict(self.curve))
        self._saved = time.monotonic()

    def resume(self) -> None:
        """Go on from the state that `save` wrote, if there is one."""
        if not self.path.exists():
            return
        tensors, about = load_tensors(self.path)
        self.curve = _curve(about)
        self.best = {}
        for key, value in tensors.items():
            group, _, rest = key.partition("/")
            own = value.to(self.model.device, copy=True)  # rounding depends on memory alignment
            if group == "state":
                name, _, part = rest.partition("/")
                self.states[name][part] = own
            else:
                (self.trained.masters if group == "master" else self.best)[rest] = own

    def _label(self) -> str:
        curve = self.curve
        parts = []
        if curve.losses:
            parts += [f"loss {curve.losses[-1]:.3f}", f"{curve.tokens_per_second:.0f} tokens/s"]
        if curve.held_out:
            parts.append(f"held-out {curve.held_out[0][1]:.3f} → {curve.held_out[-1][1]:.3f}")
        parts.append(f"{psutil.Process().memory_info().rss / 1e6:.0f} MB")
        return ", ".join(parts)


def _curve(about: dict[str, Any]) -> Curve:
    looks = [(int(step), loss, accuracy) for step, loss, accuracy in about["held_out"]]
    return Curve(**{**about, "held_out": looks})
