"""Distance of a model's predictions from a reference's, measured as llama-perplexity does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgepack.core.progress import Progress, Steps
from edgepack.core.weight_files import load_tensors, save_tensors
from edgepack.errors import EdgepackError
from edgepack.runtimes.base import Scorer, check_numbers, tokenize_prefix

_ROWS = 32  # positions per float64 block: 40 MB at a vocabulary of 150 000


@dataclass(frozen=True)
class Divergence:
    """A candidate against the reference on the same `positions`.

    `kl_*` are KL(reference ‖ candidate) in nats per token, `top1` is the share of positions where
    both prefer the same token; `*_error` are standard errors of the mean over positions. The
    reference's perplexity on the same tokens is given for comparison.
    """

    positions: int
    perplexity: float
    perplexity_error: float
    reference_perplexity: float
    reference_perplexity_error: float
    kl_mean: float
    kl_error: float
    kl_p999: float
    kl_max: float
    top1: float
    top1_error: float

    def as_dict(self) -> dict[str, float]:
        """Fields for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood of `positions` tokens; its standard error to first
    order, perplexity × the mean's, as llama-perplexity prints it."""

    positions: int
    perplexity: float
    perplexity_error: float

    @staticmethod
    def from_nll(nll: NDArray[np.float64]) -> Perplexity:
        """Perplexity from the negative log-likelihood of every token, in nats."""
        value = math.exp(nll.mean())
        return Perplexity(nll.size, value, value * standard_error(nll))

    def as_dict(self) -> dict[str, float]:
        """Fields for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Positions:
    """Values of every position, each ``[positions]`` float64: the negative log-likelihood of the
    true next token under both models (nats), the KL divergence, and whether the top token agrees
    (0 or 1)."""

    reference_nll: NDArray[np.float64]
    nll: NDArray[np.float64]
    kl: NDArray[np.float64]
    agree: NDArray[np.float64]

    @staticmethod
    def join(parts: list[Positions]) -> Positions:
        """All positions of all chunks."""
        columns = zip(*((p.reference_nll, p.nll, p.kl, p.agree) for p in parts), strict=True)
        return Positions(*(np.concatenate(column) for column in columns))

    def summary(self) -> Divergence:
        """Means, standard errors and tails."""
        own, reference = Perplexity.from_nll(self.nll), Perplexity.from_nll(self.reference_nll)
        return Divergence(
            positions=self.kl.size,
            perplexity=own.perplexity,
            perplexity_error=own.perplexity_error,
            reference_perplexity=reference.perplexity,
            reference_perplexity_error=reference.perplexity_error,
            kl_mean=float(self.kl.mean()),
            kl_error=standard_error(self.kl),
            kl_p999=float(np.quantile(self.kl, 0.999)),
            kl_max=float(self.kl.max()),
            top1=float(self.agree.mean()),
            top1_error=standard_error(self.agree),
        )


def standard_error(values: NDArray[np.float64]) -> float:
    """Standard error of the mean; 0 for a single value."""
    return float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else 0.0


def compare(
    reference: NDArray[np.float32], candidate: NDArray[np.float32], targets: NDArray[np.integer]
) -> Positions:
    """Compare logits ``[positions, vocab]`` of two models, given the true tokens ``[positions]``.

    In float64 from the softmax on, because a KL of 1e-6 is a difference of logarithms near 10.
    """
    check_numbers(reference)
    check_numbers(candidate)
    columns: list[list[torch.Tensor]] = [[], [], [], []]
    for start in range(0, len(targets), _ROWS):
        rows = slice(start, start + _ROWS)
        p = torch.log_softmax(torch.from_numpy(reference[rows]), -1, dtype=torch.float64)
        q = torch.log_softmax(torch.from_numpy(candidate[rows]), -1, dtype=torch.float64)
        target = torch.as_tensor(targets[rows], dtype=torch.int64).unsqueeze(1)
        found = (
            -p.gather(1, target).squeeze(1),
            -q.gather(1, target).squeeze(1),
            torch.where(p.isneginf(), 0.0, p.exp() * (p - q)).sum(-1).clamp_min(0),
            (p.argmax(-1) == q.argmax(-1)).double(),
        )
        for column, values in zip(columns, found, strict=True):
            column.append(values)
    return Positions(*(torch.cat(column).numpy() for column in columns))


def chunk(runtime: Scorer, text: str, context: int, limit: int | None = None) -> NDArray[np.int64]:
    """A text as tokens ``[n, context]``, without the incomplete end, at most `limit` chunks.

    As in llama-perplexity, the whole text is tokenized at once, and the first token of every chunk
    is *replaced* by BOS, if the model starts with one.
    """
    tokens = np.array(tokenize_prefix(runtime, text), np.int64)
    chunks = tokens[: len(tokens) // context * context].reshape(-1, context)[:limit]
    if not len(chunks):
        raise EdgepackError(
            f"the evaluation text has {len(tokens)} tokens, one chunk needs {context}",
            hint="give a longer text or a smaller context",
        )
    if runtime.bos is not None:
        chunks[:, 0] = runtime.bos
    return chunks


CHUNK = "chunk-"
"""Prefix of the files of finished chunks."""


def divergence(
    reference: Scorer,
    candidates: Mapping[str, Scorer],
    chunks: NDArray[np.integer],
    kept: Path | None = None,
) -> Steps[dict[str, Divergence]]:
    """Every candidate against the reference, chunk by chunk, so that no logits are kept.

    The folder `kept` stores the results of each chunk; chunks found there are not computed again.

    The first half of each chunk ``[context]`` is context only: positions context/2 … context−2
    predict the token after them. Memory: two times context/2 × vocab float32, for any number of
    candidates and chunks.
    """
    found: dict[str, list[Positions]] = {name: [] for name in candidates}
    for done, row in enumerate(chunks):
        yield Progress("measure", done, len(chunks), "predictions beside the original's")
        path = None if kept is None else chunk_path(kept, done)
        if path is None or not path.exists():
            parts = score_chunk(reference, candidates, row)
            if path is not None:
                save_positions(path, parts)
        else:
            parts = _load(path)
        for name, part in parts.items():
            found[name].append(part)
    return {name: Positions.join(parts).summary() for name, parts in found.items()}


def score_chunk(
    reference: Scorer, candidates: Mapping[str, Scorer], row: NDArray[np.integer]
) -> dict[str, Positions]:
    """Every candidate against the reference on one chunk ``[context]``."""
    first = len(row) // 2
    tokens, targets = row[:-1].tolist(), row[first + 1 :]
    expected = reference.logits(tokens, first)
    return {
        name: compare(expected, candidate.logits(tokens, first), targets)
        for name, candidate in candidates.items()
    }


def chunk_path(folder: Path, index: int) -> Path:
    """The file of a chunk's results."""
    return folder / f"{CHUNK}{index:05d}.safetensors"


def save_positions(path: Path, parts: Mapping[str, Positions]) -> None:
    """Keep the results of a chunk, by model."""
    names = list(parts)
    tensors = {
        f"{names.index(name)} {key}": torch.from_numpy(value)
        for name, positions in parts.items()
        for key, value in vars(positions).items()
    }
    save_tensors(path, tensors, {"names": names})


def _load(path: Path) -> dict[str, Positions]:
    tensors, about = load_tensors(path)
    keys = [field.name for field in fields(Positions)]
    return {
        name: Positions(*(tensors[f"{i} {key}"].numpy() for key in keys))
        for i, name in enumerate(about["names"])
    }


def perplexity(
    models: Mapping[str, Scorer], chunks: NDArray[np.integer]
) -> Steps[dict[str, Perplexity]]:
    """Perplexity on the same positions as in `divergence`, where there is no reference."""
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in models}
    first = chunks.shape[1] // 2
    for done, row in enumerate(chunks):
        yield Progress("measure", done, len(chunks), "predictions")
        for name, model in models.items():
            logits = model.logits(row[:-1].tolist(), first)
            found[name].append(-log_probabilities(logits, row[first + 1 :]))
    return {name: Perplexity.from_nll(np.concatenate(parts)) for name, parts in found.items()}


def log_probabilities(
    logits: NDArray[np.float32], tokens: Sequence[int] | NDArray[np.integer]
) -> NDArray[np.float64]:
    """log p, in nats, of each token ``[n]`` under its row of logits ``[n, vocab]``."""
    check_numbers(logits)
    parts = []
    for start in range(0, len(tokens), _ROWS):
        rows = torch.from_numpy(logits[start : start + _ROWS]).double()
        wanted = torch.as_tensor(tokens[start : start + _ROWS], dtype=torch.int64).unsqueeze(1)
        parts.append(rows.gather(1, wanted).squeeze(1) - rows.logsumexp(-1))
    found: NDArray[np.float64] = torch.cat(parts).numpy()
    return found
