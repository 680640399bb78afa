"""The decompose stage: every weight of a model in turn, one file each, the unit of resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from edgepack.calibration.moments import EMBEDDING, HEAD, OUTPUT, unknown, weight_hessian
from edgepack.calibration.sweep import embedded, head_moments, layerwise
from edgepack.core import plugins
from edgepack.core.errors import while_doing
from edgepack.core.executor import side_by_side
from edgepack.core.progress import Progress, Steps
from edgepack.core.weight_files import IMATRIX, load_weight, save_tensors, weight_path
from edgepack.core.weights import Hessian, WeightSpec
from edgepack.decompose.caldera import Decomposition, caldera
from edgepack.model.decoder import Decoder
from edgepack.model.stream import Tokens, micro_batches, states


@dataclass(frozen=True)
class Choice:
    """What one matrix is to become: format of Q, rank, and the formats L and R really get."""

    format: str
    rank: int = 0
    L: str | None = None
    R: str | None = None
    factors: str = "f16"


Lookup = Callable[[WeightSpec], Hessian] | None
"""A weight's Hessian; None where there are no statistics."""


@dataclass(frozen=True)
class Settings:
    """What all weights share."""

    damping: tuple[float, ...]
    iterations: int


def decompose(
    decoder: Decoder,
    choices: Mapping[str, Choice],
    settings: Settings,
    hessians: Path | None,
    tokens: Tokens | None,
    folder: Path,
) -> Steps[None]:
    """Write one file per matrix of `choices` into `folder`, leaving out those already there.

    `hessians` is the folder of a guided calibration; without one, each block is calibrated on
    `tokens` as the blocks already packed pass them on (objective ``layer``). With neither, the
    choices may name unquantized formats only.
    """
    run = _Run(decoder, choices, settings, folder)
    if hessians is not None or tokens is None:
        yield from run.one_shot(hessians)
    else:
        yield from run.sequential(tokens)


@dataclass
class _Run:
    decoder: Decoder
    choices: Mapping[str, Choice]
    settings: Settings
    folder: Path

    def __post_init__(self) -> None:
        self.specs = self.decoder.checkpoint.specs
        self.total = sum(self.specs[name].numel for name in self.choices)
        self.done = 0

    def one_shot(self, hessians: Path | None) -> Steps[None]:
        """All weights against the original's statistics."""
        tied = self.decoder.dimensions.tie_word_embeddings
        for group in self._groups():
            lookup = None if hessians is None else partial(weight_hessian, hessians, tied=tied)
            yield from self._group(group, lookup)

    def sequential(self, tokens: Tokens) -> Steps[None]:
        """Block after block, each on what the packed blocks before it pass on."""
        batches = micro_batches(tokens)
        packed = Decoder(
            self.decoder.checkpoint,
            {name: partial(self._dense, name) for name in self.choices},
        )
        outside, *blocks = self._groups()
        stream = states(self.decoder, tokens.all, self.folder, "x")
        if not any(state.exists for state in stream):
            stream[0].write(embedded(self.decoder, tokens.all, batches))
        for index, group in enumerate(blocks):
            inputs, output = stream[index], stream[index + 1]
            if any(not weight_path(self.folder, s.name).exists() for s in group):
                hessians = layerwise(self.decoder.block(index), inputs, batches)
                yield from self._group(group, partial(_of_block, hessians))
            else:
                yield from self._group(group, None)
            if inputs.exists and not output.exists:
                block = packed.block(index)
                output.write(block(inputs.read(batch.rows)) for batch in batches)
            inputs.path.unlink(missing_ok=True)
        moments = head_moments(self.decoder.head(), stream[-1], batches)
        yield from self._group(outside, lambda spec: self._outside(spec, moments))
        stream[-1].path.unlink()

    def _outside(self, spec: WeightSpec, moments: Mapping[str, Hessian]) -> Hessian:
        tied = self.decoder.dimensions.tie_word_embeddings
        multiplied = (OUTPUT, EMBEDDING) if tied else (OUTPUT,)
        return moments[HEAD] if spec.role in multiplied else unknown(spec.shape[1])

    def _groups(self) -> list[list[WeightSpec]]:
        """The matrices outside the blocks, then those of each block."""
        groups: dict[int, list[WeightSpec]] = {-1: []}
        for name in self.choices:
            spec = self.specs[name]
            groups.setdefault(-1 if spec.block is None else spec.block, []).append(spec)
        return [groups[block] for block in sorted(groups)]

    def _group(self, group: list[WeightSpec], hessian: Lookup) -> Steps[None]:
        missing = [s for s in group if not weight_path(self.folder, s.name).exists()]
        self.done += sum(s.numel for s in group if s not in missing)
        for spec in side_by_side(partial(self._weight, hessian), missing):
            yield Progress("decompose", self.done, self.total, self._label(spec))
            self.done += spec.numel

    def _label(self, spec: WeightSpec) -> str:
        choice = self.choices[spec.name]
        return f"{spec.name.removesuffix('.weight')} ({choice.format}, rank {choice.rank})"

    def _weight(self, hessian: Lookup, spec: WeightSpec) -> None:
        with while_doing(f"decomposing {self._label(spec)}"):
            self._decompose(spec, self.choices[spec.name], hessian)

    def _decompose(self, spec: WeightSpec, choice: Choice, hessian: Lookup) -> None:
        checkpoint = self.decoder.checkpoint
        H = unknown(spec.shape[1]) if hessian is None else hessian(spec)
        found = caldera(
            checkpoint.tensor(spec.name),
            H,
            plugins.find("formats", choice.format),
            rank=choice.rank,
            factors=choice.factors,
            damping=self.settings.damping,
            iterations=self.settings.iterations,
            source=checkpoint.quantized(spec.name),
        )
        path = weight_path(self.folder, spec.name)
        imatrix = {IMATRIX: H.imatrix.float()}
        save_tensors(path, found.weight.tensors() | imatrix, _about(found))

    def _dense(self, name: str) -> Tensor:
        return load_weight(self.folder, name)[0].dense()


def _of_block(hessians: Mapping[str, Hessian], spec: WeightSpec) -> Hessian:
    """Shortcuts have none: they are applied outside the block's linear maps, and stay float16."""
    return hessians.get(spec.role) or unknown(spec.shape[1])


def _about(found: Decomposition) -> dict[str, Any]:
    about = {k: v for k, v in vars(found).items() if k != "weight"}
    return {**about, "formats": found.weight.formats(), "rank": found.weight.rank}
