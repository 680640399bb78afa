"""The stage `finetune`: a packed model's files and examples → an adapter's files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from edgepack.adapters import files, onnx
from edgepack.adapters.adapter import Adapter
from edgepack.adapters.base import ONNX, PackedBase
from edgepack.calibration.stage import Calibrate
from edgepack.checkpoint import Checkpoint
from edgepack.core.accelerator import CPU, describe, keyed
from edgepack.core.adapters import FOLDER, check_name, only_weights
from edgepack.core.disk import atomic, sha256
from edgepack.core.executor import Executor
from edgepack.core.hardware import peak_memory, return_freed_memory
from edgepack.core.progress import Progress, Steps
from edgepack.core.stage import Stage
from edgepack.decompose.stage import Decompose
from edgepack.errors import EdgepackError, RecipeError
from edgepack.export.stage import Export
from edgepack.finetune import begin, general, report
from edgepack.finetune.arithmetic import choose
from edgepack.finetune.batches import split
from edgepack.finetune.examples import Examples, read_examples
from edgepack.finetune.frozen import FrozenModel
from edgepack.finetune.memory import Layout, Packed, choose_layout
from edgepack.finetune.trained import Factors, Stack, Trained, targets
from edgepack.finetune.training import Data, Run
from edgepack.output.environment import environment
from edgepack.planning.plan import Plan
from edgepack.recipe.texts import EXAMPLES, VALIDATION
from edgepack.recipe.training import Finetune as Options

RESULT = "finetune.json"
"""What the run did, in the stage's folder and for the manifest."""
STATE = "state"
NOT_KEYED = ("data", "validation", "name")
"""Options that are in the key as what they lead to, or that change nothing in the result."""


@dataclass(frozen=True)
class Prepared:
    """The trained weights, the use of memory, the examples to learn and those of a file that
    judges."""

    names: list[str]
    layout: Layout
    learnt: Examples
    held_out: Examples | None


@dataclass(frozen=True)
class Finetune(Stage):
    """Trains on the files that `exported` writes, or on those of a finished folder."""

    options_: Options
    data: Path
    digest: str
    """sha256 of the examples."""
    validation: Path | None = None
    validation_digest: str | None = None
    exported: Export | None = None
    finished: PackedBase | None = None
    original: Checkpoint | None = None
    hessians: Path | None = None
    device: torch.device = CPU

    name = "finetune"
    code = ("edgepack.finetune", "edgepack.adapters", "edgepack.checkpoint", "edgepack.model")

    @property
    def inputs(self) -> tuple[str, ...]:  # noqa: D102
        base = self.finished.identity.digest if self.finished else self._exported.key
        return (base, self.digest, *([self.validation_digest] if self.validation_digest else []))

    def output(self) -> str | None:  # noqa: D102
        return f"{FOLDER}/{self.adapter_name}"

    def options(self) -> dict[str, Any]:  # noqa: D102
        kept = self.options_.model_dump(mode="json", exclude=set(NOT_KEYED))
        return kept | {"data": self.data.suffix} | keyed(self.device)

    @property
    def _exported(self) -> Export:
        assert self.exported is not None  # one of both is given
        return self.exported

    @cached_property
    def base(self) -> PackedBase:
        """The packed model; for a recipe it is there once `exported` is complete."""
        if self.finished is not None:
            return self.finished
        stage = self._exported
        name = str(stage.original.source["model"])
        return PackedBase(stage.folder, name, stage.target.name, only_weights(stage.files()))

    def run(self, folder: Path, executor: Executor) -> Steps[None]:  # noqa: D102
        yield Progress("finetune", 0, 1, "reading examples")
        if (folder / RESULT).exists():  # written last: killed when all was done
            (folder / STATE).unlink(missing_ok=True)
            return
        if self.options_.memory:  # it costs time
            return_freed_memory()
        o, base = self.options_, self.base
        ready = self.prepare()
        trained = yield from self._trained(ready.names)
        trained.to(self.device)
        arithmetic = choose(o.arithmetic, seed=o.seed, device=self.device)
        model = FrozenModel(base.checkpoint, arithmetic, device=self.device)
        data, judges = yield from self._data(model, ready.learnt, ready.held_out)
        layout = ready.layout
        run = Run(model, trained, data, o, folder / STATE, layout.kind, layout.positions)
        before = run.score(data.held_out, tuned=False) if data.held_out else None
        curve = yield from run.train()
        yield Progress("finetune", run.steps, run.steps, "what became of general text")
        result = {
            "mode": o.mode,
            "r": o.r if o.mode == "stack" else max(base.ranks.values()),
            "lora_alpha": o.lora_alpha if o.mode == "stack" else None,
            "examples": len(data.learnt),
            "held_out_examples": len(data.held_out),
            "skipped": list(ready.learnt.skipped),
            "parameters": sum(master.numel() for master in trained.masters.values()),
            "before": before and {"loss": before.loss, "accuracy": before.accuracy},
            "best_step": curve.best,
            "general": asdict(general.drift(model, judges, trained.without, run.evaluated)),
            "general_tokens": len(judges) * general.LENGTH,
            "tokens_per_second": curve.tokens_per_second,
            "peak_memory": peak_memory(),
            "planned_memory": layout.peak,
            "activations": layout.kind,
            "arithmetic": model.arithmetic.name,
            **keyed(self.device),
            "note": model.arithmetic.note,
            "curve": asdict(curve),
        }
        yield Progress("finetune", run.steps, run.steps, "writing the adapter")
        trained.to(CPU)
        self._write(folder, trained, result)
        (folder / STATE).unlink(missing_ok=True)

    def prepare(self) -> Prepared:
        """What can be known before any work. All that is wrong with options and examples is found
        here, in a plan too, where there are no files yet."""
        o, packed = self.options_, self.packed
        names = targets(packed.model, o)
        if o.mode == "factors":
            Factors.check(names, packed.ranks)
        changed = [name for name in names if o.mode == "stack" or name in packed.ranks]
        if self.finished is not None and self.finished.target == ONNX:
            onnx.check_room(self.finished, changed)
        choose(o.arithmetic, device=self.device)
        learnt, held_out = self._examples(packed.model)
        every = [*learnt.examples, *(held_out.examples if held_out else ())]
        longest = max(len(example.ids) for example in every)
        return Prepared(names, choose_layout(packed, names, o, longest), learnt, held_out)

    @property
    def packed(self) -> Packed:
        """The packed model as far as it is known: from the plan, or from its files."""
        if self.finished is not None:
            return Packed(self.finished.checkpoint, self.finished.ranks)
        decomposed = self._exported.decomposed
        formats = decomposed.chosen.formats if decomposed else {}
        ranks = {name: fmt.rank for name, fmt in formats.items() if fmt.rank}
        return Packed(self._exported.model, ranks)

    def _examples(self, model: Checkpoint) -> tuple[Examples, Examples | None]:
        """Those to learn from, and those of a file that judges."""
        learnt = self._read(model, "data", self.data, self.digest)
        if self.validation is None:
            return learnt, None
        return learnt, self._read(model, "validation", self.validation, self.validation_digest)

    def _read(self, model: Checkpoint, key: str, path: Path, known: str | None) -> Examples:
        o = self.options_
        if sha256(path) != known:
            raise EdgepackError(
                f"finetune.{key}: {path.name} has changed since the run began",
                hint="run it again, and leave the file alone while it runs",
            )
        return read_examples(
            path, model, o.sequence_length, f"finetune.{key}", skip=o.skip_bad_rows
        )

    def _trained(self, names: list[str]) -> Steps[Trained]:
        o = self.options_
        if o.mode == "factors":
            return Factors.start(self.base, names)
        begun = yield from begin.beginnings(self.base, names, o, self.original, self.hessians)
        return Stack.start(self.base, names, o, begun)

    def _data(
        self, model: FrozenModel, learnt: Examples, held_out: Examples | None
    ) -> Steps[tuple[Data, list[Any]]]:
        """What is learnt and what judges; and general text that judges."""
        o = self.options_
        own, judging = (
            (list(learnt.examples), list(held_out.examples))
            if held_out
            else split(learnt.examples, o.held_out, o.seed)
        )
        more = general.REPLAYED if o.replay else 0
        decoder = general.PackedDecoder(self.base, model)
        texts = yield from general.write(decoder, general.JUDGES + more, o.seed)
        judges, replay = texts[: general.JUDGES], texts[general.JUDGES :]
        return Data(own, judging, replay), judges

    def _write(self, folder: Path, trained: Trained, result: Mapping[str, Any]) -> None:
        """The adapter's files, the picture and the report."""
        base = self.base
        about = {key: value for key, value in result.items() if key not in report.SPEEDS}
        about["environment"] = environment(describe(self.device))
        adapter = Adapter(trained.difference(), base.identity, about)
        picture = report.draw(result, folder / "loss.png")
        (folder / "report.md").write_text(report.page(result, picture=picture), encoding="utf-8")
        kept = trained.stored_pairs() if isinstance(trained, Factors) else None
        files.write(folder, adapter, base, trained=kept)
        with atomic(folder / RESULT) as temporary:
            temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")

    @property
    def adapter_name(self) -> str:
        """The adapter's folder."""
        return check_name(self.options_.name or self.data.stem)

    def facts(self) -> dict[str, Any]:
        """What the run did."""
        path = self.folder / RESULT
        if not path.exists():
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"finetuned": {"name": self.adapter_name, **found}}

    def memory(self) -> int:
        """As `choose_layout` plans it, beside the process."""
        return self._planned.own

    @cached_property
    def _planned(self) -> Layout:
        return self.prepare().layout


def join(plan: Plan) -> Plan:
    """The plan with training on its files, if the recipe asks for it."""
    o = plan.recipe.finetune
    if o is None:
        return plan
    exported = plan.find(Export)
    if exported is None or not plan.target.packs:
        raise EdgepackError(
            f"finetune: a {plan.target.name} has no packed weights to train on",
            hint="use --target gguf or --target onnx, or leave the section out",
        )
    calibrate = plan.find(Calibrate)
    hessians = calibrate.hessians if calibrate and plan.find(Decompose) else None
    stage = make(
        o,
        plan.base,
        exported=exported,
        original=plan.model,
        hessians=hessians,
        device=plan.device,
    )
    stage.prepare()
    _check_room(plan, o)
    texts = {EXAMPLES: stage.digest}
    if stage.validation_digest:
        texts[VALIDATION] = stage.validation_digest
    return replace(plan.adding(stage), texts={**plan.texts, **texts})


def _check_room(plan: Plan, options: Options) -> None:
    """Refuse what the files of the plan could not be trained or run with."""
    names = targets(plan.model, options)
    if options.mode == "factors":
        names = [name for name in names if plan.formats[name].rank]
    if plan.target.name != ONNX or plan.recipe.export.onnx.adapters:
        return
    fixed = [name for name in names if plan.formats[name].R != "f16"]
    if fixed:
        raise RecipeError(
            f"finetune: the graph would have no factors of {fixed[0]} that an adapter can replace",
            hint="set export.onnx.adapters: true, or compress.rank with factors: f16",
        )


def make(
    options: Options,
    place: Path,
    *,
    exported: Export | None = None,
    finished: PackedBase | None = None,
    original: Checkpoint | None = None,
    hessians: Path | None = None,
    device: torch.device = CPU,
) -> Finetune:
    """The stage for some options, whose paths are relative to `place`."""
    data = _existing(place / Path(options.data).expanduser(), "data")
    judging = options.validation and place / Path(options.validation).expanduser()
    validation = _existing(judging, "validation") if judging else None
    stage = Finetune(
        options,
        data,
        sha256(data),
        validation,
        sha256(validation) if validation else None,
        exported,
        finished,
        original,
        hessians,
        device,
    )
    check_name(stage.adapter_name)
    return stage


def _existing(path: Path, key: str) -> Path:
    if not path.is_file():
        raise EdgepackError(
            f"finetune.{key}: {path.name} is no file",
            hint="give a .jsonl with a row a line, a .json list of rows, or a text",
        )
    return path
