"""Chunks of a text as items of work: on several machines they are measured side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepack.core.executor import Executor, Spread
from edgepack.core.progress import Progress, Steps
from edgepack.core.travel import Part
from edgepack.errors import RuntimeMissingError
from edgepack.metrics.divergence import chunk_path, save_positions, score_chunk
from edgepack.runtimes.base import Scorer
from edgepack.runtimes.models import Model, Runnable


@dataclass(frozen=True)
class Chunk:
    """Some tokens on which `models`, the reference first, are measured; `runtimes` are the versions
    of the libraries that run them here."""

    models: tuple[Model, ...]
    context: int
    tokens: tuple[int, ...]
    runtimes: tuple[tuple[str, str], ...]
    path: Path

    def writes(self) -> tuple[Path]:
        """The file."""
        return (self.path,)

    def reads(self) -> list[Part]:
        """The models' files."""
        return [Part(path, kept=True) for model in self.models for path in model.files]

    def weights(self) -> tuple[str, ...]:
        """None: files are run, not checkpoints."""
        return ()


def spread_chunks(
    executor: Executor | None,
    reference: Runnable,
    models: Sequence[Runnable],
    chunks: NDArray[np.integer],
    folder: Path,
) -> Steps[None]:
    """Write what `divergence` keeps of every chunk into `folder`, if `executor` has several
    machines and the models are files; else leave it to `divergence`."""
    every = [model for model in (reference, *models) if isinstance(model, Model)]
    if not isinstance(executor, Spread) or len(every) <= len(models):
        return
    runtimes = tuple((name, version(name)) for name in sorted({m.package for m in every}))
    items = [
        Chunk(tuple(every), chunks.shape[1], tuple(row.tolist()), runtimes, chunk_path(folder, i))
        for i, row in enumerate(chunks)
    ]
    missing = [item for item in items if not item.path.exists()]
    done = len(items) - len(missing)
    for _ in executor.map(measure_chunk, missing):
        yield Progress("measure", done, len(items), "predictions beside the original's")
        done += 1


def measure_chunk(item: Chunk) -> None:
    """Write the file of one chunk."""
    for name, wanted in item.runtimes:
        _check_version(name, wanted)
    reference, *candidates = _opened(item.models, item.context)
    named = {model.name: run for model, run in zip(item.models[1:], candidates, strict=True)}
    save_positions(item.path, score_chunk(reference, named, np.array(item.tokens)))


@lru_cache(maxsize=1)
def _stack() -> ExitStack:
    """What keeps the models of `_opened` open."""
    return ExitStack()


@lru_cache(maxsize=1)
def _opened(models: tuple[Model, ...], context: int) -> list[Scorer]:
    """Opened once a process, and kept for its next chunk; each on one core."""
    _stack().close()
    return [_stack().enter_context(model.open(context, threads=1)) for model in models]


def _check_version(name: str, wanted: str) -> None:
    try:
        there = version(name)
    except PackageNotFoundError:
        there = "no version"
    if there != wanted:
        raise RuntimeMissingError(
            f"a machine of the cluster has {there} of {name}, not {wanted}",
            hint=f"pip install {name}=={wanted} on all of them",
        )
