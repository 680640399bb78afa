"""Two skills in one model: SmolLM2-135M-Instruct's fine-tunes, merged, compressed, in llama.cpp.

    python -m benchmarks.merge_skills --data ../shared/data --work DIR

`edgepack finetune` makes two adapters of one base: questions to SQL (WikiSQL), and whether a
sentence is English that a linguist accepts (CoLA, as many of either label, so that guessing is
50 %). They are merged as `base+adapter` by every method, and each merge is written as f16 and as
q4_0 (same recipe, light calibration on rows of both tasks' training parts).

Every method has the settings in `GRID`; which one counts is decided on validation rows, by the
sum over both tasks of the loss relative to that of the task's own fine-tune. The table is of test
rows, which decided nothing. ± is one standard error of the rows; differences between merges are
paired by row. What is in DIR is not made again, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import edgepack
from benchmarks._merge_memory import merged, planned, validated
from benchmarks._merge_tables import differences, mean, table, validation
from benchmarks._merge_tasks import (
    COLA,
    PARTS,
    SQL,
    Task,
    cola_task,
    sql_task,
    tested,
)
from benchmarks.same_type import MODEL, RESULTS

PAGE, KEPT = RESULTS / "merge_skills.md", RESULTS / "merge_skills.json"
TRAINED = {"--rank": "8", "--batch-size": "8", "--learning-rate": "1e-3", "--replay": "0"}
SETTINGS = ("arithmetic=bfloat16", "held_out=0", "lora_alpha=16")
F16 = {"format": "f16", "rank": 0, "embeddings": "f16"}
Q4 = {"format": "q4_0", "rank": 0, "damping": [0.03]}
CALIBRATE = {"objective": "guided", "sequence_length": 256}


@dataclass(frozen=True)
class Options:
    """How large a run is."""

    work: Path
    train: int
    valid: int
    test: int
    tokens: int
    methods: tuple[str, ...] = ()
    rounding_tokens: int = 2048
    threads: int | None = None


@dataclass(frozen=True)
class Setting:
    """A method with its parameters: of the whole, of the models, and edgepack's own keys."""

    method: str
    whole: Mapping[str, float | bool]
    weight: float | None = 1.0
    metric: str | None = None

    def __str__(self) -> str:
        parts = [f"{key} {value}" for key, value in self.whole.items() if key != "normalize"]
        return ", ".join([*parts, *([f"H: {self.metric}"] if self.metric else [])]) or "–"


def grid() -> dict[str, list[Setting]]:
    """Row of the table → the settings that are tried."""
    steps = (0.5, 0.75, 1.0)
    ties = [{"density": d, "lambda": s} for d, s in itertools.product((0.3, 0.7), (1.0, 1.5))]
    mean = {"normalize": True}
    return {
        "linear": [Setting("task_arithmetic", {"lambda": step}) for step in steps],
        "slerp": [Setting("slerp", {"t": t}, None) for t in (0.4, 0.5, 0.6)],
        "ties": [Setting("ties", whole) for whole in ties],
        "dare_ties": [Setting("dare_ties", whole) for whole in ties],
        "fisher": [
            Setting("task_arithmetic", mean | {"lambda": step}, 1.0, "guided")
            for step in (1.0, 1.5)
        ],
    }


def fine_tune(base: Path, task: Task) -> str:
    """An adapter, made by the command; the reference that a merge knows it by."""
    folder = base / "adapters" / task.name
    if not folder.exists():
        command = [sys.executable, "-m", "edgepack", "finetune", str(base), "--name", task.name]
        command += ["--data", str(task.files["train"]), "--epochs", "1", "--json"]
        command += [part for pair in TRAINED.items() for part in pair]
        command += [part for setting in SETTINGS for part in ("--set", setting)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return f"{MODEL}+{folder / 'peft'}"


class Merges:
    """Both fine-tunes, and all that is made of them in the folder of the run."""

    def __init__(
        self, references: Mapping[str, str], tasks: Sequence[Task], options: Options
    ) -> None:
        self.references, self.tasks, self.options = references, tasks, options
        self.mixed = options.work / "mixed.jsonl"
        texts = [task.files["train"].read_text("utf-8").split("\n") for task in tasks]
        self.mixed.write_text("\n".join(row for pair in zip(*texts, strict=False) for row in pair))

    def alone(self, name: str) -> dict[str, Any]:
        """The section `merge` for one model as it is; the base is no fine-tune's name."""
        reference = self.references.get(name, MODEL)
        models = [{"model": reference, "parameters": {"weight": 1}}]
        return {"merge_method": "linear", "models": models, "dtype": "float32"} | OUT

    def section(self, setting: Setting) -> dict[str, Any]:
        """The section `merge` of a setting."""
        models = []
        for task in self.tasks:
            model: dict[str, Any] = {"model": self.references[task.name]}
            if setting.weight is not None:
                model["parameters"] = {"weight": setting.weight}
            if setting.metric is not None:
                model["text"] = str(task.files["train"])
            models.append(model)
        base = self.references[self.tasks[0].name] if setting.method == "slerp" else MODEL
        found = {
            "merge_method": setting.method,
            "models": models,
            "base_model": base,
            "parameters": dict(setting.whole),
            "dtype": "float32",
        } | OUT
        if setting.metric is not None:
            calibrate = CALIBRATE | {"tokens": self.options.tokens, "objective": setting.metric}
            found |= {"weighted": "fisher", "calibrate": calibrate}
        return found

    def valid(self, section: Mapping[str, Any], name: str) -> dict[str, float]:
        """Mean loss on the validation rows of each task, by our own forward pass."""
        folder = self._folder(f"valid-{name}")
        kept = folder.with_suffix(".json")
        if not kept.exists():
            stage = planned(section, folder.with_suffix(".yaml"))
            found = validated(merged(stage), self.tasks)
            kept.write_text(json.dumps({task: mean(values) for task, values in found.items()}))
        read: dict[str, float] = json.loads(kept.read_text())
        return read

    def packed(self, section: Mapping[str, Any], form: str, name: str) -> dict[str, Any]:
        """A merge straight into a GGUF, and its test; the file's size with it."""
        folder = self._folder(f"{form}-{name}")
        kept = folder.with_suffix(".json")
        if not kept.exists():
            recipe = {"merge": dict(section), "compress": Q4 if form == "q4_0" else F16}
            recipe["export"] = {"measure": {"tokens": 0}}
            if form == "q4_0":
                more = {"source": str(self.mixed), "tokens": self.options.rounding_tokens}
                recipe["calibrate"] = CALIBRATE | more
            edgepack.build(self._write(folder, recipe), "gguf", out=folder, force=True)
            file = folder / "base.gguf"
            found = {
                "bytes": file.stat().st_size,
                "tasks": tested(file, self.tasks, self.options.threads),
            }
            kept.write_text(json.dumps(found))
        read: dict[str, Any] = json.loads(kept.read_text())
        return read

    def _folder(self, name: str) -> Path:
        return self.options.work / "".join(c if c.isalnum() else "-" for c in name)

    def _write(self, folder: Path, content: Mapping[str, Any]) -> Path:
        path = folder.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")
        return path


OUT = {"out_dtype": "float16"}


def chosen(merges: Merges, settings: Sequence[Setting], own: Mapping[str, float]) -> dict[str, Any]:
    """The setting with the least sum of relative validation losses, and that of every other."""
    found = []
    for setting in settings:
        section = merges.section(setting)
        loss = merges.valid(section, f"{setting.method}-{setting}")
        score = sum(loss[name] / own[name] for name in own) / len(own)
        found.append({"setting": str(setting), "score": score, "section": section, **loss})
        print(f"  {setting.method}: {setting}: {loss}, score {score:.4f}", flush=True)
    return {**min(found, key=lambda one: one["score"]), "tried": found}


def prepare(data: Path, options: Options) -> Merges:
    """The base, both tasks and both fine-tunes."""
    options.work.mkdir(parents=True, exist_ok=True)
    base = options.work / "base"
    if not base.exists():
        path = options.work / "base.yaml"
        recipe = {"model": MODEL, "compress": F16, "export": {"measure": {"tokens": 0}}}
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        edgepack.build(path, "gguf", out=base)
    counts = {part: getattr(options, part) for part in PARTS}
    tasks = [make(data, counts, options.work) for make in (sql_task, cola_task)]
    return Merges({task.name: fine_tune(base, task) for task in tasks}, tasks, options)


def run(data: Path, options: Options) -> dict[str, Any]:
    """All of it."""
    merges = prepare(data, options)
    own = {name: merges.valid(merges.alone(name), name)[name] for name in (SQL, COLA)}
    models: dict[str, Any] = {}
    for name in ("base", SQL, COLA):
        label = name if name == "base" else f"fine-tune {name}"
        models[label] = {"setting": "–", "section": merges.alone(name)}
    for name, settings in grid().items():
        if name in options.methods:
            models[name] = chosen(merges, settings, own)
    for name, model in models.items():
        section = model.pop("section")
        for one in model.get("tried", ()):
            one.pop("section", None)
        model["forms"] = {form: merges.packed(section, form, name) for form in ("f16", "q4_0")}
        print(f"{name} is tested", flush=True)
    rows = {part: getattr(options, part) for part in PARTS}
    return {"rows": rows, "tokens": options.tokens, "models": models}


def about(options: Options) -> str:
    """A sentence on the size of a run."""
    return (
        f"Rows a task: {options.train} of training, {options.valid} of validation, "
        f"{options.test} of test. "
        f"Calibration tokens of fisher: {options.tokens} a model."
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--train", type=int, default=320)
    parser.add_argument("--valid", type=int, default=32)
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=4096, help="that each model is calibrated on")
    parser.add_argument("--rounding-tokens", type=int, default=2048, help="for q4_0")
    parser.add_argument("--threads", type=int, help="of llama.cpp; 1 on a busy machine")
    parser.add_argument("--methods", default=",".join(grid()))
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    methods = tuple(given.methods.split(","))
    began = time.perf_counter()
    options = Options(
        given.work.resolve(),
        given.train,
        given.valid,
        given.test,
        given.tokens,
        methods,
        given.rounding_tokens,
        given.threads,
    )
    results = run(given.data.resolve(), options)
    seconds = time.perf_counter() - began
    size = f"{about(options)} Those of q4_0: {options.rounding_tokens}."
    lines = [size, "", *table(results), *differences(results), *validation(results)]
    (given.results / PAGE.name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (given.results / KEPT.name).write_text(json.dumps(results, indent=1) + "\n")
    print("\n".join(lines), f"\n{seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
