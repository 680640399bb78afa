"""The recover stage: the folder of decomposed weights in, one of the same files trained out.

What a killed run finds in it: the embedded tokens and the original's last hidden states, written
once; ``state``, the run at its last evaluation; and the weights that are written already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgepack.cache import load_tensors, save_tensors
from edgepack.calibration.sweep import Activations, Batch, micro_batches
from edgepack.calibration.text import Tokens
from edgepack.decoder import Block, Decoder, Head
from edgepack.progress import Progress, Steps
from edgepack.recover import trainable
from edgepack.recover.student import VALUE, Masters, Student, moved, moved_head
from edgepack.recover.training import Data, Recovered, Run, Settings, report_of
from edgepack.weights import FactoredWeight

NORMS = "norms.safetensors"
"""Trained norms and biases by Hugging Face name, float32; beside them, the report."""

IN_MEMORY = 2 << 30
"""Bytes of codes that are not read again at every step."""


def recover(
    decoder: Decoder,
    original: Decoder,
    weights: Path,
    tokens: Tokens,
    settings: Settings,
    folder: Path,
) -> Steps[Recovered]:
    """Train what `settings.train` names of the packed model and write it into `folder`.

    `decoder` is the model that was packed, `original` the one to be close to (a wider one, where
    the other is a slice of it), `weights` the decompose stage's folder. `folder` gets one file per
    matrix, of the same layout, formats, codes of Q and size, and `NORMS`.
    """
    state = folder / "state"
    if (folder / NORMS).exists() and not state.exists():
        return read_report(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = _student(decoder, weights, settings, device)
    data = _data(decoder, original, tokens, folder)

    def teacher() -> Head:
        return moved_head(original.head(), device)

    run = Run(student, teacher, data, settings, state)
    run.resume()
    total = student.blocks + settings.steps
    if run.report.stopped is None:
        yield from _prepare(student, original, data, tokens, total)
    yield from _train(run, student.blocks, total)
    _write(run, weights, folder)
    for path in (data.embedded.path, data.targets.path, state):  # the state last: it says "written"
        path.unlink(missing_ok=True)
    return run.report


def read_report(folder: Path) -> Recovered:
    """What a finished folder says of itself."""
    return report_of(load_tensors(folder / NORMS)[1])


def about(report: Recovered) -> dict[str, Any]:
    """A report for manifests: held-out KL at the start and at its best, and all in between."""
    return {key: getattr(report, key) for key in ("start", "best", "best_step")} | asdict(report)


def read_norms(folder: Path) -> dict[str, Tensor]:
    """Norms and biases of a finished folder, float32 by Hugging Face name."""
    return load_tensors(folder / NORMS)[0]


def _student(decoder: Decoder, weights: Path, settings: Settings, device: torch.device) -> Student:
    """The packed model with its masters as they start."""

    def read(name: str) -> FactoredWeight:
        tensors, about = load_tensors(_file(weights, name))
        return FactoredWeight.from_tensors(tensors, about["formats"])

    load = trainable.Shelf(read, IN_MEMORY)
    masters: Masters = {}
    for spec in decoder.checkpoint.specs.values():
        if len(spec.shape) > 1 and spec.block is not None:
            masters[spec.name] = trainable.masters(load(spec.name), settings.train)
        elif len(spec.shape) == 1 and "norms" in settings.train:
            masters[spec.name] = {VALUE: decoder.checkpoint.tensor(spec.name).clone()}
    kept = {
        name: {part: value.to(device) for part, value in parts.items()}
        for name, parts in masters.items()
        if parts
    }
    return Student(decoder, load, kept, device, _dtype(device))


def _dtype(device: torch.device) -> torch.dtype:
    """What a training step multiplies in: bfloat16 where there are instructions for it."""
    native = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def _data(decoder: Decoder, original: Decoder, tokens: Tokens, folder: Path) -> Data:
    held_out = [batch for batch in micro_batches(tokens) if batch.held_out]
    checkpoint = decoder.checkpoint
    width = checkpoint.specs[checkpoint.architecture.hf_name("token_embd")].shape[1]
    shape, wide = ((*tokens.all.shape, n) for n in (width, original.dimensions.hidden_size))
    embedded, targets = (
        Activations(folder / "embedded", shape),
        Activations(folder / "targets", wide),
    )
    return Data(embedded, targets, len(tokens.train), held_out)


def _prepare(
    student: Student, original: Decoder, data: Data, tokens: Tokens, total: int
) -> Steps[None]:
    """Write what `data` is about, streaming the original's blocks over all tokens once."""
    ids, device = tokens.all, student.device
    batches = micro_batches(tokens)
    if not data.embedded.exists:
        data.embedded.write(student.embed(ids[batch.rows]) for batch in batches)
    folder, shape = data.targets.path.parent, data.targets.shape
    between = [Activations(folder / f"x-{i}", shape) for i in range(student.blocks)]
    states = [*between, data.targets]
    if not any(state.exists for state in states):
        embedding = original.embedding()
        states[0].write(embedding[ids[batch.rows]] for batch in batches)
        del embedding
    for i, (inputs, output) in enumerate(pairwise(states)):
        yield Progress("recover", i, total, f"the original's block {i}")
        if inputs.exists and not output.exists:
            output.write(_through(moved(original.block(i), device), inputs, batches, device))
        inputs.path.unlink(missing_ok=True)


def _through(
    block: Block, inputs: Activations, batches: list[Batch], device: torch.device
) -> Iterator[Tensor]:
    for batch in batches:
        with torch.no_grad():
            yield block(inputs.read(batch.rows).to(device)).cpu()


def _train(run: Run, done: int, total: int) -> Steps[None]:
    """Steps and evaluations until one of them says it is over."""
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
    """The best state, weight by weight; all as it was where nothing was gained."""
    student, specs = run.student, run.student.decoder.checkpoint.specs
    student.masters = run.best if run.report.best_step else {}
    norms = {}
    for spec in specs.values():
        if len(spec.shape) == 1:
            norms[spec.name] = student.vector(spec.name).cpu().contiguous()
        elif not _file(folder, spec.name).exists():
            tensors, about = load_tensors(_file(weights, spec.name))
            if spec.name in student.masters:
                tensors |= _cpu(student.stored(spec.name).tensors())
            save_tensors(_file(folder, spec.name), tensors, about)
    save_tensors(folder / NORMS, norms, asdict(run.report))


def _cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.cpu() for key, value in tensors.items()}


def _file(folder: Path, name: str) -> Path:
    """Where the decompose stage keeps a weight, and this one too."""
    return folder / f"{name}.safetensors"
