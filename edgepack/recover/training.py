"""The loop of `recover`: Adam on random sequences, evaluated on held-out ones, resumable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgepack.core.accelerator import wide
from edgepack.core.weight_files import load_tensors, save_tensors
from edgepack.errors import EdgepackError
from edgepack.model.decoder import Head
from edgepack.model.stream import Activations, Batch
from edgepack.recover import trainable
from edgepack.recover.adam import Moments, schedule, unit_step
from edgepack.recover.distance import divergence
from edgepack.recover.student import Masters, Student


@dataclass(frozen=True)
class Settings:
    """How long, how fast and what to train.

    `tokens` are those of a step, in whole sequences. Learning rates are relative (`adam.unit_step`)
    and for a packed model whose KL is 1 nat or more: 0.005 then moves a scale by about 0.5 % a
    step. `patience` counts evaluations without a new best; one costs as much as a few steps.
    """

    steps: int = 100
    tokens: int = 1024
    train: tuple[str, ...] = trainable.KINDS
    scales: float = 0.005
    factors: float = 0.015
    norms: float = 0.005
    clip: float = 1.0
    evaluate_every: int = 20
    patience: int = 3
    seed: int = 0

    def rate(self, part: str) -> float:
        """The highest learning rate of a part."""
        if part in ("L", "R"):
            return self.factors
        return self.scales if part.startswith("Q.") else self.norms


@dataclass
class Recovered:
    """Results of a run: mean KL to the original on the held-out sequences, in nats a token.

    `held_out` are pairs (steps made, KL); the best of them was written. `stopped` is why the run
    ended: ``steps`` (all made), ``patience`` or ``diverged``. Training steps were computed on
    `device`, their products in `dtype`, and drawn from `text_tokens` tokens.
    """

    steps: int = 0
    stopped: str | None = None
    held_out: list[tuple[int, float]] = field(default_factory=list)
    device: str = "cpu"
    dtype: str = "float32"
    text_tokens: int = 0

    @property
    def start(self) -> float:
        """KL of the packed model before training."""
        return self.held_out[0][1]

    @property
    def best(self) -> float:
        """KL of the model that is written."""
        return min(kl for _, kl in self.held_out)

    @property
    def best_step(self) -> int:
        """Steps made up to the best; 0 means that training gained nothing."""
        return next(steps for steps, kl in self.held_out if kl == self.best)

    @property
    def setbacks(self) -> list[int]:
        """Steps made at each evaluation without a new best."""
        values = [kl for _, kl in self.held_out]
        lowest = accumulate(values, min)
        pairs = zip(self.held_out[1:], lowest, strict=False)
        return [steps for (steps, kl), before in pairs if kl >= before]


@dataclass(frozen=True)
class Data:
    """Inputs of what is trained (embedded tokens, or what the packed blocks before a block pass on)
    and what it is to make of them (the original's hidden states). The first `train` sequences are
    for training; `batches` are those of the held-out ones."""

    inputs: Activations
    targets: Activations
    train: int
    batches: list[Batch]

    def sequences(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some sequences, ``[rows, length, hidden]``."""
        slices = [slice(row, row + 1) for row in rows.tolist()]
        x, y = (torch.cat([a.read(s) for s in slices]) for a in (self.inputs, self.targets))
        return x, y


def order(count: int, batch: int, seed: int, step: int) -> Tensor:
    """The sequences of a step, out of `count`; every epoch has another random order."""
    places = torch.arange(step * batch, (step + 1) * batch)
    epochs = {
        epoch: torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))
        for epoch in sorted({int(p) // count for p in places})
    }
    return torch.stack([epochs[int(p) // count][int(p) % count] for p in places])


@dataclass
class Run:
    """A run at some step; the file `path` keeps its state between evaluations."""

    student: Student
    teacher: Callable[[], Head]
    data: Data
    settings: Settings
    path: Path
    report: Recovered = field(default_factory=Recovered)

    def __post_init__(self) -> None:
        masters = self.student.masters
        self.best = _map(masters, _copy)
        self.first, self.second = (_map(masters, _zeros) for _ in range(2))

    # ------------------------------------------------------------------------ evaluation

    def evaluate(self) -> None:
        """Held-out KL of the model as it would be written. Where it is no lower than the best,
        return to the best state and continue with smaller steps."""
        report, settings = self.report, self.settings
        kl = self.held_out_kl()
        if not math.isfinite(kl):
            if not report.held_out:
                raise EdgepackError("recover: the packed model's predictions are not finite")
            report.stopped = "diverged"
            return
        report.held_out.append((report.steps, kl))
        if report.best_step == report.steps:
            self.best = _map(self.student.masters, _copy)
        else:
            self.student.masters = _map(self.best, _copy)
            self.first, self.second = (_map(self.best, _zeros) for _ in range(2))
        if report.steps >= settings.steps:
            report.stopped = "steps"
        elif sum(steps > report.best_step for steps in report.setbacks) >= settings.patience:
            report.stopped = "patience"

    def held_out_kl(self) -> float:
        """Mean KL over the held-out tokens."""
        data, device = self.data, self.student.device
        parts = [data.inputs.read(b.rows).to(device) for b in data.batches]
        parts = self.student.forward(parts)
        student, teacher = self.student.head(), self.teacher()
        total = tokens = 0.0
        for batch, x in zip(data.batches, parts, strict=True):
            target = data.targets.read(batch.rows).to(device)
            total += divergence(student, teacher, x.flatten(0, 1), target.flatten(0, 1))
            tokens += target.shape[0] * target.shape[1]
        return total / tokens

    @property
    def due(self) -> bool:
        """Whether the current state must be evaluated, and has not been."""
        report, settings = self.report, self.settings
        if report.held_out and report.held_out[-1][0] == report.steps:
            return False
        return report.steps % settings.evaluate_every == 0 or report.steps == settings.steps

    # ------------------------------------------------------------------------ a step

    def step(self) -> None:
        """One step of Adam on a batch."""
        settings, data, device = self.settings, self.data, self.student.device
        masters = self.student.masters
        batch = max(1, settings.tokens // data.targets.shape[1])
        rows = order(data.train, batch, settings.seed, self.report.steps)
        x, target = (t.to(device) for t in data.sequences(rows))
        _, gradients = self.student.gradient(x, target, self.teacher)
        sizes = {(name, part): unit_step(part, masters[name][part]) for name, part in gradients}
        for key, gradient in gradients.items():
            gradient.mul_(sizes[key])  # with respect to relative changes of the part
        squares = (wide(gradient.square()).sum() for gradient in gradients.values())
        norm = math.sqrt(sum(map(float, squares)))
        if not math.isfinite(norm):
            self.report.stopped = "diverged"
            return
        clip, rate = min(1.0, settings.clip / max(norm, 1e-30)), self.rate
        since = self.report.steps - max(self.report.setbacks, default=0)
        for (name, part), gradient in gradients.items():
            moments = Moments(self.first[name][part], self.second[name][part])
            reach = rate * settings.rate(part) * sizes[name, part]
            masters[name][part] -= reach * moments.update(clip * gradient, since)
        self.report.steps += 1

    @property
    def rate(self) -> float:
        """Factor of the learning rates: the distance to the original (√KL, at most 1), times the
        schedule, divided by 3 for every setback."""
        report = self.report
        distance = min(1.0, math.sqrt(report.start))
        planned = schedule(report.steps, self.settings.steps)
        return distance * planned / 3.0 ** len(report.setbacks)

    # ------------------------------------------------------------------------ resume

    def save(self) -> None:
        """Write everything that the next steps and the result depend on."""
        groups = {
            "master": self.student.masters,
            "first": self.first,
            "second": self.second,
            "best": self.best,
        }
        tensors = {
            f"{group} {name} {part}": value.cpu()
            for group, masters in groups.items()
            for name, part, value in _items(masters)
        }
        save_tensors(self.path, tensors, asdict(self.report))

    def resume(self) -> None:
        """Continue from the state that `save` wrote, if there is one."""
        if not self.path.exists():
            return
        tensors, about = load_tensors(self.path)
        self.report = report_from_json(about)
        groups: dict[str, Masters] = {"master": {}, "first": {}, "second": {}, "best": {}}
        for key, value in tensors.items():
            group, name, part = key.split(" ")
            own = value.to(self.student.device, copy=True)  # rounding depends on memory alignment
            groups[group].setdefault(name, {})[part] = own
        self.student.masters, self.first, self.second, self.best = groups.values()


def report_from_json(about: dict[str, Any]) -> Recovered:
    """A report from its JSON."""
    held_out = [tuple(pair) for pair in about["held_out"]]
    return Recovered(**{**about, "held_out": held_out})


def _items(masters: Masters) -> Iterator[tuple[str, str, Tensor]]:
    return ((name, part, v) for name, parts in masters.items() for part, v in parts.items())


def _map(masters: Masters, change: Callable[[str, Tensor], Tensor]) -> Masters:
    return {n: {part: change(part, v) for part, v in parts.items()} for n, parts in masters.items()}


def _copy(_: str, master: Tensor) -> Tensor:
    return master.clone()


def _zeros(_: str, like: Tensor) -> Tensor:
    return torch.zeros_like(like)
