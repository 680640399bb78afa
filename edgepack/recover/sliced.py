"""Recovery fine-tuning of a sliced model, before anything is compressed.

SliceGPT's RFT (arXiv 2401.15024, section 4.1) trains LoRA factors on text. Here `recover` distils
them from the unsliced model. They start as the principal part of every weight (PiSSA, Meng et al.,
arXiv 2404.02948) and are merged in the end, so that the model keeps its shape.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgepack import formats
from edgepack.architectures.base import LINEAR_ROLES
from edgepack.checkpoint import Checkpoint
from edgepack.checkpoint.save import is_saved, model_bytes, save
from edgepack.core.accelerator import CPU, precise
from edgepack.core.disk import atomic
from edgepack.core.executor import Executor
from edgepack.core.linalg import top_left_singular_vectors
from edgepack.core.progress import Progress, Steps
from edgepack.core.stage import Disk, Stage
from edgepack.core.weight_files import load_tensors, save_tensors
from edgepack.core.weights import FactoredWeight, QuantizedTensor
from edgepack.errors import DecompositionError
from edgepack.formats._limits import FP16_MAX, check_finite
from edgepack.model.decoder import Decoder
from edgepack.model.sliced import Sliced
from edgepack.model.stream import Tokens
from edgepack.planning.plan import Plan, Text
from edgepack.recipe.training import Rft
from edgepack.recover import distil
from edgepack.recover.training import Settings, report_from_json

REPORT = "rft.json"


def finetune(
    sliced: Sliced,
    original: Decoder,
    tokens: Tokens,
    options: Rft,
    folder: Path,
    arithmetic: Mapping[str, str],
) -> Steps[None]:
    """Write the fine-tuned `sliced` into `folder`, a Hugging Face folder, with the results in
    `REPORT`. `arithmetic` is the result of `recover.distil.choose_arithmetic`; the device is that
    of `original`. Memory holds one block at a time, and the factors with their moments."""
    start, end = folder / "start", folder / "trained"
    if not is_saved(folder):
        yield from _split(sliced, options.rank, start, precise(original.device))
        end.mkdir(exist_ok=True)
        student = Decoder(sliced, device=original.device)
        report = yield from distil.recover(
            student, original, start, tokens, _settings(options), end, arithmetic
        )
        with atomic(folder / REPORT) as temporary:
            temporary.write_text(json.dumps(asdict(report)), encoding="utf-8")
        norms = distil.read_norms(end)

        def load(name: str) -> Tensor:
            return norms[name] if name in norms else _load(end / f"{name}.safetensors").dense()

        yield from save(sliced, load, folder, "rft")
    for part in (start, end):
        shutil.rmtree(part, ignore_errors=True)


@dataclass(frozen=True)
class FineTune(Stage):
    """The sliced model, fine-tuned: a Hugging Face folder of the same shapes. Results depend on the
    `arithmetic` of `distil.choose_arithmetic`."""

    sliced: Sliced
    original: Checkpoint
    text: Text
    recover: Rft
    arithmetic: Mapping[str, str]
    device: torch.device = CPU

    name = "rft"
    code = ("edgepack.recover.sliced", "edgepack.formats.f16")

    @property
    def inputs(self) -> tuple[str, ...]:  # noqa: D102
        return (self.sliced.stage.key, self.original.key, self.text.key)

    def options(self) -> dict[str, Any]:  # noqa: D102
        return self.recover.model_dump() | dict(self.arithmetic)

    @cached_property
    def model(self) -> Sliced:
        """The sliced model with its trained weights."""
        return self.sliced.with_weights_from(self)

    def run(self, folder: Path, executor: Executor) -> Steps[None]:  # noqa: D102
        yield from finetune(
            self.sliced,
            Decoder(self.original, device=self.device),
            self.text.tokens,
            self.recover,
            folder,
            self.arithmetic,
        )

    def disk(self) -> Disk:
        """The model, and while it is trained its matrices twice and hidden states."""
        kept = model_bytes(self.sliced)
        return Disk(4 * kept, kept)

    def facts(self) -> dict[str, Any]:
        """Held-out KL at the start, at its best, and at every evaluation."""
        return {"rft": read_report(self.folder)} if self.is_done else {}


def join(plan: Plan) -> Plan:
    """The plan with the sliced model fine-tuned, where the recipe asks for it."""
    options, model = plan.recipe.slice, plan.model
    if options is None or options.recover is None:
        return plan
    assert isinstance(model, Sliced)
    assert plan.text is not None
    arithmetic = distil.choose_arithmetic(plan.device)
    given = (model, plan.original, plan.text, options.recover, arithmetic)
    stage = FineTune(*given, plan.device)
    return replace(plan, model=stage.model).adding(stage)


def read_report(folder: Path) -> dict[str, Any]:
    """The report in a finished folder; see `recover.distil.about`."""
    return distil.about(report_from_json(json.loads((folder / REPORT).read_text(encoding="utf-8"))))


def _settings(options: Rft) -> Settings:
    return Settings(
        steps=options.steps,
        tokens=options.tokens,
        train=("factors", "norms"),
        factors=options.learning_rate,
        norms=options.learning_rate,
        evaluate_every=options.evaluate_every,
        patience=options.patience,
        seed=options.seed,
    )


def _split(sliced: Sliced, rank: int, folder: Path, device: torch.device) -> Steps[None]:
    """Write every matrix as `recover` reads it: those of blocks as Q + L·R with the closest L·R of
    that rank; shortcuts, embeddings and head unchanged."""
    folder.mkdir(exist_ok=True)
    matrices = [spec for spec in sliced.specs.values() if spec.is_matrix]
    for done, spec in enumerate(matrices):
        path = folder / f"{spec.name}.safetensors"
        yield Progress("rft", done, len(matrices), f"factors of {spec.name}")
        if path.exists():
            continue
        W = sliced.tensor(spec.name).to(device)
        weight = FactoredWeight(_half(W), None, None)
        if spec.role in LINEAR_ROLES:
            L, R = principal_part(W, min(rank, *spec.shape))
            weight = FactoredWeight(_half(W - L.dequantize() @ R.dequantize()), L, R)
        save_tensors(path, weight.tensors(), {"formats": weight.formats()})


def principal_part(W: Tensor, rank: int) -> tuple[QuantizedTensor, QuantizedTensor]:
    """L ``[out, rank]`` and R ``[rank, in]`` as float16, with L·R closest to W ``[out, in]``. Both
    have the same scale: U√S and √S Vᵀ."""
    U = top_left_singular_vectors(W, torch.eye(W.shape[1], device=W.device), rank)
    R = U.T @ W.double()
    root = R.norm(dim=1).sqrt()
    return _half((U * root).float()), _half((R / root[:, None]).float())


def _half(x: Tensor) -> QuantizedTensor:
    check_finite("the sliced weight", x)
    if float(x.abs().max()) > FP16_MAX:
        raise DecompositionError(
            "slice.recover: a sliced weight is larger than float16 can hold",
            hint="remove slice.recover",
        )
    quantized: QuantizedTensor = formats.get("f16").quantize(x)
    return quantized


def _load(path: Path) -> FactoredWeight:
    tensors, about = load_tensors(path)
    return FactoredWeight.from_tensors(tensors, about["formats"])
