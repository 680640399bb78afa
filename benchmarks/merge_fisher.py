"""What decides a merge by Fisher matrices: metric, text, mass, ridge; on validation rows.

    python -m benchmarks.merge_fisher --data ../shared/data --work DIR

DIR is the folder of `benchmarks.merge_skills`, whose fine-tunes are merged again as task_arithmetic
with `normalize` and λ: base + λ · (mean of the changes + D). Every row of the table is another D;
0 is the plain mean. Losses are those of our own forward pass in float32, nats a token of the
answers. Differences are to the plain mean at the same λ, paired by row, ± one standard error.

- **text**: which labels' gradients make H: all of the rows of each model's training data, or those
  of the answers in them.
- **mass**: each model's metric is divided by its Fisher mass, or not.
- **choice**: held-out tokens choose for each weight how far to go from the mean, as merges do, or
  the ridge is fixed (λ of 1 only).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks._merge_memory import merged, planned, validated
from benchmarks._merge_tables import error, mean
from benchmarks._merge_tasks import COLA, SQL
from benchmarks.merge_skills import Merges, Options, Setting, about, prepare
from benchmarks.same_type import MODEL, RESULTS
from edgepack.calibration.text_stage import FileText
from edgepack.checkpoint import open_checkpoint
from edgepack.core.executor import Threads
from edgepack.core.progress import finish
from edgepack.merge.fisher.choose import STEPS, TOLERANCE, Found
from edgepack.merge.fisher.plan import Fisher
from edgepack.merge.fisher.solve import Term, closed_form, conjugate_gradients, cost
from edgepack.merge.fisher.weighting import Weighting

PAGE = "merge_fisher.md"
LAMBDAS = (1.0, 1.5, 2.0)
Losses = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Way:
    """A way to find D. `ridge` None: held-out tokens choose."""

    metric: str
    text: str = "rows"
    mass: bool = True
    ridge: float | None = None

    def __str__(self) -> str:
        chosen = "held out" if self.ridge is None else f"ridge {self.ridge:g}"
        return f"{self.metric} | {self.text} | {'yes' if self.mass else 'no'} | {chosen}"

    @property
    def file(self) -> str:
        """Name of the file of its D."""
        return "".join(c if c.isalnum() else "-" for c in str(self)) + ".safetensors"


def ways() -> list[Way]:
    """All that are measured, the most important ones first."""
    texts = ("rows", "answers")
    found = [*(Way("guided", text) for text in texts), Way("model", "rows")]
    found += [Way("guided", text, mass=False) for text in texts[::-1]]
    found += [Way("guided", "answers", ridge=ridge) for ridge in (1e-2, 1.0, 1e-1, 1e-3)]
    return [*found, Way("model", "answers")]


@dataclass
class Free(Weighting):
    """A weighting of any of the ways, on calibrations with the output side."""

    way: Way = Way("model")

    def _mass(self, place: int) -> float:
        return super()._mass(place) if self.way.mass else 1.0

    def solve(self, train: Sequence[Term], held_out: Sequence[Term]) -> Found:
        """See `Weighting`."""
        if self.way.metric == "guided":
            train, held_out = (
                [dataclasses.replace(t, G=None) for t in x] for x in (train, held_out)
            )
        if self.way.ridge is None:
            return super().solve(train, held_out)
        terms = [term.to(torch.float32) for term in train]
        if self.way.metric == "guided":
            D = closed_form(terms, self.way.ridge).float()
        else:
            D = last(conjugate_gradients(terms, self.way.ridge), torch.zeros_like(terms[0].E))
        return Found(D, cost(torch.zeros_like(D), held_out), cost(D, held_out))


def last(found: Iterator[tuple[Tensor, float]], D: Tensor) -> Tensor:
    """What conjugate gradients come to, from D on."""
    for D, residual in islice(found, STEPS):  # noqa: B007
        if residual < TOLERANCE:
            break
    return D


class Bench:
    """The base, the mean of the changes, and losses on validation rows."""

    def __init__(self, merges: Merges) -> None:
        self.merges, self.folder = merges, merges.options.work / "ways"
        self.folder.mkdir(exist_ok=True)

    @cached_property
    def base(self) -> dict[str, Tensor]:
        """The base's tensors."""
        checkpoint = open_checkpoint(MODEL)
        return {name: checkpoint.tensor(name) for name in checkpoint.specs}

    @cached_property
    def mean(self) -> dict[str, Tensor]:
        """The mean of the fine-tunes' changes."""
        return {name: W - self.base[name] for name, W in merged(self._stage(None)).items()}

    def _stage(self, metric: str | None) -> Any:
        """The merge of the plain mean, or a weighted one."""
        setting = Setting("task_arithmetic", {"normalize": True}, 1.0, metric)
        section = self.merges.section(setting)
        return planned(section, self.folder / f"{metric}.yaml")

    def losses(self, way: Way | None, step: float) -> dict[str, list[float]]:
        """Those of all validation rows."""
        name = f"{step:g}" if way is None else f"{step:g}-{way.file}"
        kept = self.folder / f"{name}.json"
        if not kept.exists():
            D = {} if way is None else self.added(way)
            tensors = {
                name: W + step * (self.mean[name] + D.get(name, 0.0))
                for name, W in self.base.items()
            }
            kept.write_text(json.dumps(validated(tensors, self.merges.tasks)))
        read: dict[str, list[float]] = json.loads(kept.read_text())
        return read

    def added(self, way: Way) -> dict[str, Tensor]:
        """D of every weight."""
        path = self.folder / way.file
        if not path.exists():
            stage = self._stage("model")
            fisher = with_labels(stage.fisher, only_answers=way.text == "answers")
            for one in fisher.stages:
                finish(one.complete(Threads()))
            found = fisher.weighting()
            weighting = Free(found.calibrations, found.output_side, way=way)
            work = dataclasses.replace(stage.work, weighting=weighting)
            D = {}
            for tensor in stage.layout.tensors:
                if weighting.applies(tensor):
                    W = work.merge(tensor).float()
                    D[tensor.name] = W - self.base[tensor.name] - self.mean[tensor.name]
            save_file(D, path)
        return load_file(path)


def with_labels(fisher: Fisher, *, only_answers: bool) -> Fisher:
    """The calibrations, on the gradients of all labels or of those of answers only."""
    models = []
    for model in fisher.models:
        stage = model.stage
        if isinstance(stage.text, FileText):
            text = dataclasses.replace(stage.text, only_answers=only_answers)
            stage = dataclasses.replace(stage, text=text)
        models.append(dataclasses.replace(model, stage=stage))
    return Fisher(tuple(models))


def table(results: Mapping[tuple[Way | None, float], Losses]) -> Iterator[str]:
    """Losses, and differences to the plain mean."""
    yield (
        "| metric | text | mass | choice | λ "
        "| SQL loss | less the mean's | CoLA loss | less the mean's |"
    )
    yield "|---|---|---|---|---:|---:|---:|---:|---:|"
    for (way, step), found in results.items():
        plain = results[None, step]
        cells = []
        for task in (SQL, COLA):
            gaps = [a - b for a, b in zip(found[task], plain[task], strict=True)]
            gap = "–" if way is None else f"{mean(gaps):+.4f} ± {error(gaps):.4f}"
            cells += [f"{mean(found[task]):.4f}", gap]
        name = "plain mean | – | – | –" if way is None else str(way)
        yield f"| {name} | {step:g} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--train", type=int, default=320)
    parser.add_argument("--valid", type=int, default=32)
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=4096, help="that each model is calibrated on")
    parser.add_argument("--ways", type=int, default=len(ways()), help="how many are measured")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    options = Options(given.work.resolve(), given.train, given.valid, given.test, given.tokens)
    began = time.perf_counter()
    bench = Bench(prepare(given.data.resolve(), options))
    results: dict[tuple[Way | None, float], Losses] = {}
    for way in [None, *ways()[: given.ways]]:
        for step in LAMBDAS if way is None or way.ridge is None else LAMBDAS[:1]:
            results[way, step] = found = bench.losses(way, step)
            shown = {task: round(mean(values), 4) for task, values in found.items()}
            print(way, step, shown, f"{time.perf_counter() - began:.0f} s", flush=True)
    lines = [about(options), "", *table(results)]
    (given.results / PAGE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
