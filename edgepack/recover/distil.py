"""Distillation: from a folder of decomposed weights to a folder of the same files, trained.

A killed run resumes from the files in it: the embedded tokens and the original's last hidden
states, written once; ``state``, the run at its last evaluation; and the weights written so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgepack.calibration.sweep import embed_batches
from edgepack.core.accelerator import CPU, moved, product_type
from edgepack.core.progress import Progress, Steps
from edgepack.core.weight_files import load_tensors, save_tensors
from edgepack.core.weights import FactoredWeight
from edgepack.model.block import Block
from edgepack.model.decoder import Decoder
from edgepack.model.stream import Activations, Batch, Tokens, micro_batches, states
from edgepack.recover import trainable
from edgepack.recover.student import VALUE, Masters, Student
from edgepack.recover.training import Data, Recovered, Run, Settings, report_from_json

NORMS = "norms.safetensors"
"""File of the trained norms and biases by Hugging Face name, float32, and of the report."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

IN_MEMORY = 2 << 30
"""Codes up to this many bytes stay in memory between steps."""


def choose_arithmetic(device: torch.device = CPU) -> dict[str, str]:
    """The ``device`` of training steps and the ``dtype`` of their products (bfloat16 where there
    are instructions for it). Results depend on both, so they belong to the stage's options."""
    dtype = str(product_type(device)).removeprefix("torch.")
    return {"device": device.type, "dtype": dtype}


def recover(
    decoder: Decoder,
    original: Decoder,
    weights: Path,
    tokens: Tokens,
    settings: Settings,
    folder: Path,
    arithmetic: Mapping[str, str] | None = None,
) -> Steps[Recovered]:
    """Train the parts of the packed model that `settings.train` names, and write into `folder`.

    `decoder` is the model that was packed, `original` the one to imitate (wider, if the other is a
    slice of it), both on the device that computes; `weights` is the decompose stage's folder.
    `folder` gets one file per matrix with the same layout, formats, codes of Q and size, and
    `NORMS`. `arithmetic` is the result of `choose_arithmetic` when the stage's key was made.
    """
    state = folder / "state"
    if (folder / NORMS).exists() and not state.exists():
        return read_report(folder)
    arithmetic = arithmetic or choose_arithmetic(decoder.device)
    student = _student(decoder, weights, settings, DTYPES[arithmetic["dtype"]])
    data = _data(decoder, original, tokens, folder)
    report = Recovered(device=arithmetic["device"], dtype=arithmetic["dtype"])
    report.text_tokens = tokens.train.numel()
    run = Run(student, original.head, data, settings, state, report)
    run.resume()
    total = student.blocks + settings.steps
    if run.report.stopped is None:
        yield from _prepare(student, original, data, tokens, total)
    yield from _train(run, student.blocks, total)
    _write(run, weights, folder)
    for path in (
        data.inputs.path,
        data.targets.path,
        state,
    ):  # state last: without it, all is written
        path.unlink(missing_ok=True)
    return run.report


def read_report(folder: Path) -> Recovered:
    """The report in a finished folder."""
    return report_from_json(load_tensors(folder / NORMS)[1])


def about(report: Recovered) -> dict[str, Any]:
    """A report for manifests: held-out KL at the start, at its best, and at every evaluation."""
    return {key: getattr(report, key) for key in ("start", "best", "best_step")} | asdict(report)


def read_norms(folder: Path) -> dict[str, Tensor]:
    """Norms and biases of a finished folder, float32 by Hugging Face name."""
    return load_tensors(folder / NORMS)[0]


def _student(decoder: Decoder, weights: Path, settings: Settings, dtype: torch.dtype) -> Student:
    """The packed model with its masters before training."""

    def read(name: str) -> FactoredWeight:
        tensors, about = load_tensors(_file(weights, name))
        return FactoredWeight.from_tensors(tensors, about["formats"])

    load = trainable.WeightCache(read, IN_MEMORY)
    masters: Masters = {}
    for spec in decoder.checkpoint.specs.values():
        if spec.is_matrix and spec.block is not None:
            masters[spec.name] = trainable.masters(load(spec.name), settings.train)
        elif len(spec.shape) == 1 and "norms" in settings.train:
            masters[spec.name] = {VALUE: decoder.checkpoint.tensor(spec.name).clone()}
    kept = {
        name: {part: value.to(decoder.device) for part, value in parts.items()}
        for name, parts in masters.items()
        if parts
    }
    return Student(decoder, load, kept, dtype)


def _data(decoder: Decoder, original: Decoder, tokens: Tokens, folder: Path) -> Data:
    held_out = [batch for batch in micro_batches(tokens) if batch.held_out]
    first, last = decoder.widths[0], original.widths[-1]
    inputs = Activations(folder / "embedded", (*tokens.all.shape, first))
    targets = Activations(folder / "targets", (*tokens.all.shape, last))
    return Data(inputs, targets, len(tokens.train), held_out)


def _prepare(
    student: Student, original: Decoder, data: Data, tokens: Tokens, total: int
) -> Steps[None]:
    """Write the files of `data`, running the original's blocks over all tokens once."""
    ids = tokens.all
    batches = micro_batches(tokens)
    if not data.inputs.exists:
        data.inputs.write(embed_batches(student.current_decoder(), ids, batches))
    stream = [*states(original, ids, data.targets.path.parent, "x")[:-1], data.targets]
    if not any(state.exists for state in stream):
        stream[0].write(embed_batches(original, ids, batches))
    for i, (inputs, output) in enumerate(pairwise(stream)):
        yield Progress("recover", i, total, f"the original's block {i}")
        if inputs.exists and not output.exists:
            output.write(_through(original.block(i), inputs, batches))
        inputs.path.unlink(missing_ok=True)


def _through(block: Block, inputs: Activations, batches: list[Batch]) -> Iterator[Tensor]:
    for batch in batches:
        with torch.no_grad():
            yield block(inputs.read(batch.rows).to(block.device))


def _train(run: Run, done: int, total: int) -> Steps[None]:
    """Steps and evaluations until one of them sets `stopped`."""
    report = run.report
    while report.stopped is None:
        done_now = done + report.steps
        if run.due:
            yield Progress("recover", done_now, total, "held-out tokens")
            run.evaluate()
            run.save()
        else:
            label = f"held-out KL {report.start:.4g} → {report.best:.4g} nats"
            yield Progress("recover", done_now, total, label)
            run.step()
            if report.stopped:
                run.save()


def _write(run: Run, weights: Path, folder: Path) -> None:
    """Write the best state, weight by weight; if training gained nothing, the weights as before."""
    student, specs = run.student, run.student.decoder.checkpoint.specs
    student.masters = run.best if run.report.best_step else {}
    norms = {}
    for spec in specs.values():
        if not spec.is_matrix:
            norms[spec.name] = student.vector(spec.name).cpu().contiguous()
        elif not _file(folder, spec.name).exists():
            tensors, about = load_tensors(_file(weights, spec.name))
            if spec.name in student.masters:
                tensors |= moved(student.current_weight(spec.name).tensors(), CPU)
            save_tensors(_file(folder, spec.name), tensors, about)
    save_tensors(folder / NORMS, norms, asdict(run.report))


def _file(folder: Path, name: str) -> Path:
    """The file of a weight, in the decompose stage's folder and in this stage's."""
    return folder / f"{name}.safetensors"
