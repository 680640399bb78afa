"""What decides a merge by Fisher matrices: metric, ridge, mass, texts, on validation rows.

    python -m benchmarks.merge_fisher --data ../shared/data --work DIR

DIR is the folder of `benchmarks.merge_skills`, whose fine-tunes are merged again, with the same
rows and calibration tokens, as task_arithmetic with `normalize` and λ. Every row of the table is a
way to find the weights of the same merge; all else is equal. Losses are those of our own forward
pass in float32, nats a token of the answers. The differences are to the plain mean at the same λ,
paired by row, ± one standard error.

- **mass**: each model's metric is divided by its Fisher mass, or not.
- **choice**: held-out tokens choose for each weight how far to go from the mean (as merges do), or
  the ridge is fixed.
- **text**: which tokens' gradients make H: those of whole rows, those of the answers, or of a text
  that each model writes itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmarks._merge_tables import error, mean
from benchmarks._merge_tasks import COLA, LENGTH, SQL, losses
from benchmarks.merge_skills import Merges, Options, Setting, prepare
from benchmarks.same_type import MODEL, RESULTS
from edgepack.calibration.stage import FileText
from edgepack.checkpoint import open_checkpoint
from edgepack.core.executor import Threads
from edgepack.core.progress import finish
from edgepack.merge.documents import plan_merges
from edgepack.merge.fisher.choose import STEPS, TOLERANCE, Found
from edgepack.merge.fisher.plan import Fisher
from edgepack.merge.fisher.solve import Term, closed_form, conjugate_gradients, cost
from edgepack.merge.fisher.weighting import Weighting
from edgepack.merge.stage import Merge
from edgepack.merge.stage import Options as MergeOptions
from edgepack.merge.stream import Work
from edgepack.model.decoder import Decoder
from edgepack.recipe.read import load_merges
from edgepack.runtimes.torch_decoder import TorchDecoder

PAGE = "merge_fisher.md"


@dataclass(frozen=True)
class Way:
    """A row of the table. `metric` None is the plain mean; `ridge` None: held-out tokens choose."""

    metric: str | None
    step: float = 1.0
    mass: bool = True
    ridge: float | None = None
    text: str = "rows"

    def __str__(self) -> str:
        if self.metric is None:
            return f"plain mean | – | – | – | {self.step:g}"
        chosen = "held out" if self.ridge is None else f"ridge {self.ridge:g}"
        return f"{self.metric} | {self.text} | {'yes' if self.mass else 'no'} | {chosen} | {self.step:g}"


def ways() -> list[Way]:
    """All that are measured."""
    found = []
    for step in (1.0, 1.5, 2.0):
        found.append(Way(None, step))
        found += [
            Way(metric, step, text=text)
            for metric in ("guided", "model")
            for text in ("rows", "answers")
        ]
    for metric in ("guided", "model"):
        found += [Way(metric, mass=False, text=text) for text in ("rows", "answers")]
        ridges = (1e-3, 1e-2, 1e-1, 1.0)
        found += [Way(metric, ridge=ridge, text="answers") for ridge in ridges]
        found.append(Way(metric, text="self"))
    return found


@dataclass
class Free(Weighting):
    """A weighting whose mass can be left out, and whose ridge can be fixed."""

    mass: bool = True
    ridge: float | None = None

    def _mass(self, place: int) -> float:
        return super()._mass(place) if self.mass else 1.0

    def solve(self, train: Sequence[Term], held_out: Sequence[Term]) -> Found:
        if self.ridge is None:
            return super().solve(train, held_out)
        terms = [term.to(torch.float32) for term in train]
        if any(term.G is None for term in terms):
            D = closed_form(terms, self.ridge).float()
        else:
            D = last(conjugate_gradients(terms, self.ridge), torch.zeros_like(terms[0].E))
        plain = cost(torch.zeros_like(D), held_out)
        return Found(D, plain, cost(D, held_out))


def last(found: Iterator[tuple[Tensor, float]], D: Tensor) -> Tensor:
    """What conjugate gradients come to, from D on."""
    for D, residual in islice(found, STEPS):  # noqa: B007
        if residual < TOLERANCE:
            break
    return D


class Bench:
    """The base, and losses on validation rows of what is put in its place."""

    def __init__(self, merges: Merges) -> None:
        self.merges, self.base = merges, open_checkpoint(MODEL)

    def stage(self, way: Way) -> Merge:
        """The merge of a way."""
        whole = {"normalize": True, "lambda": way.step}
        section = self.merges.section(Setting("task_arithmetic", whole, 1.0, way.metric))
        if way.text == "self":
            for model in section["models"]:
                del model["text"]
        path = self.merges.options.work / "fisher-way.yaml"
        path.write_text(yaml.safe_dump(section, sort_keys=False), encoding="utf-8")
        return plan_merges(load_merges(path), path.parent, MergeOptions())

    def losses(self, way: Way) -> dict[str, list[float]]:
        """Losses of all validation rows of both tasks."""
        kept = (
            self.merges.options.work
            / "ways"
            / ("".join(c if c.isalnum() else "-" for c in repr(way)) + ".json")
        )
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            kept.write_text(json.dumps(self._losses(way)))
        read: dict[str, list[float]] = json.loads(kept.read_text())
        return read

    def _losses(self, way: Way) -> dict[str, list[float]]:
        stage = self.stage(way)
        work = stage.work
        if stage.fisher is not None:
            fisher = with_labels(stage.fisher, only_answers=way.text == "answers")
            for one in fisher.stages:
                finish(one.complete(Threads()))
            found = fisher.weighting()
            weighting = Free(found.calibrations, found.output_side, mass=way.mass, ridge=way.ridge)
            work = dataclasses.replace(work, weighting=weighting)
        tensors = merged(work, self.base.specs)
        replaced = {name: lambda W=W: W for name, W in tensors.items()}
        with TorchDecoder(Decoder(self.base, replaced), LENGTH) as runtime:
            return {
                task.name: losses(runtime, task.examples["valid"]) for task in self.merges.tasks
            }


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


@torch.no_grad()
def merged(work: Work, changed: Any) -> dict[str, Tensor]:
    """All tensors of a merge, in float32."""
    return {
        tensor.name: work.merge(tensor).float()
        for tensor in work.layout.tensors
        if tensor.name in changed
    }


def table(results: Mapping[Way, Mapping[str, Sequence[float]]]) -> Iterator[str]:
    """Losses, and differences to the plain mean."""
    yield (
        "| metric | text | mass | choice | λ "
        "| SQL loss | less the mean's | CoLA loss | less the mean's |"
    )
    yield "|---|---|---|---|---:|---:|---:|---:|---:|"
    for way, found in results.items():
        plain = results[Way(None, way.step)]
        cells = []
        for task in (SQL, COLA):
            gaps = [a - b for a, b in zip(found[task], plain[task], strict=True)]
            gap = "–" if way.metric is None else f"{mean(gaps):+.4f} ± {error(gaps):.4f}"
            cells += [f"{mean(found[task]):.4f}", gap]
        yield f"| {way} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--train", type=int, default=320)
    parser.add_argument("--valid", type=int, default=32)
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=4096, help="that each model is calibrated on")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    options = Options(given.work.resolve(), given.train, given.valid, given.test, given.tokens, ())
    began = time.perf_counter()
    bench = Bench(prepare(given.data.resolve(), options))
    results = {}
    for way in ways():
        results[way] = bench.losses(way)
        print(way, {task: round(mean(v), 4) for task, v in results[way].items()}, flush=True)
    lines = list(table(results))
    (given.results / PAGE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines), f"\n{time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
