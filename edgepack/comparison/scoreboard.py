"""What a comparison of models found: as JSON, and as tables a person can read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgepack.core.tables import align, format_size
from edgepack.metrics.divergence import Divergence, Perplexity
from edgepack.metrics.multiple_choice import Answers, Mean


@dataclass(frozen=True)
class Scoreboard:
    """What was found. The first model is the `reference` where there is one."""

    reference: str | None
    bytes: Mapping[str, int]
    text: Mapping[str, Any] | None
    predictions: Mapping[str, Divergence | Perplexity]
    answers: Mapping[str, Mapping[str, Answers]]

    @property
    def baseline(self) -> str:
        """The model that accuracies are compared with: the first."""
        return next(iter(self.bytes))

    def as_dict(self) -> dict[str, Any]:
        """For JSON; accuracies are shares of 1, every ``*_error`` is a standard error."""
        models: dict[str, dict[str, Any]] = {n: {"bytes": b} for n, b in self.bytes.items()}
        for name, found in self.predictions.items():
            models[name]["text"] = found.as_dict()
        for name, answers in self.answers.items():
            models[name]["tasks"] = {task: self._score(name, task) for task in answers}
        head = {"reference": self.reference, "baseline": self.baseline, "text": self.text}
        return {**head, "models": models}

    def _score(self, name: str, task: str) -> dict[str, Any]:
        answers = self.answers[name][task]
        means = {"acc": Mean.from_items(answers.plain)}
        if answers.norm is not None:
            means["acc_norm"] = Mean.from_items(answers.norm)
        if name != self.baseline:
            means["difference"] = answers.minus(self.answers[self.baseline][task])
        values = {
            key: value
            for kind, mean in means.items()
            for key, value in ((kind, mean.value), (f"{kind}_error", mean.error))
        }
        return {"items": answers.plain.size, **values}

    def lines(self) -> list[str]:
        """As tables."""
        lines = []
        if self.text:
            what = "{tokens} tokens of {name}, in chunks of {context}, the second half of each"
            lines += [what.format(**self.text), "", *align(self._text_rows()), ""]
        if self.answers:
            lines += [*align(self._task_rows()), ""]
        lines += ["± is the standard error."]
        if self.answers and len(self.bytes) > 1:
            lines += [
                f"difference: that to {self.baseline} on the same items,",
                "in acc_norm where the task has one, else in acc.",
            ]
        return lines

    def _text_rows(self) -> list[list[str]]:
        rows = [["model", "size", "perplexity", "mean KL", "99.9 % KL", "same top token"]]
        for name, r in self.predictions.items():
            row = [name, format_size(self.bytes[name])]
            row += [f"{r.perplexity:.3f} ± {r.perplexity_error:.3f}"]
            if isinstance(r, Divergence):
                row += [f"{r.kl_mean:.4f} ± {r.kl_error:.4f}", f"{r.kl_p999:.3f}"]
                row += [f"{100 * r.top1:.1f} ± {100 * r.top1_error:.1f} %"]
            rows.append([*row, "–", "–", "–"][:6])
        return rows

    def _task_rows(self) -> list[list[str]]:
        rows = [["task", "model", "items", "acc %", "acc_norm %", "difference"]]
        first = self.answers[self.baseline]
        for task in first:
            for name, answers in self.answers.items():
                found = answers[task]
                row = [task, name, str(found.plain.size), _percent(Mean.from_items(found.plain))]
                row += ["–" if found.norm is None else _percent(Mean.from_items(found.norm))]
                rows.append([*row, self._difference(name, task)])
        rows += [self._mean_row(name) for name in self.answers if len(first) > 1]
        return rows if len(self.bytes) > 1 else [row[:-1] for row in rows]

    def _mean_row(self, name: str) -> list[str]:
        """Over the tasks, of acc_norm where there is one."""
        found = [answers.usual for answers in self.answers[name].values()]
        row = ["mean", name, str(sum(map(len, found)))]
        return [
            *row,
            "–",
            _percent(Mean.average(list(map(Mean.from_items, found)))),
            self._difference(name),
        ]

    def _difference(self, name: str, *tasks: str) -> str:
        """To the baseline, over all tasks unless some are named."""
        if name == self.baseline:
            return ""
        first, own = self.answers[self.baseline], self.answers[name]
        return _percent(Mean.average([own[task].minus(first[task]) for task in tasks or own]), "+")


def _percent(mean: Mean, sign: str = "") -> str:
    return f"{100 * mean.value:{sign}.1f} ± {100 * mean.error:.1f}".replace("-", "−")
