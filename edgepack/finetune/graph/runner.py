"""Training with a graph of `folder`, by ONNX Runtime alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor

from edgepack.core.disk import atomic
from edgepack.core.progress import Progress, Steps
from edgepack.core.safetensors_header import sort_texts
from edgepack.core.untrusted import shorten
from edgepack.errors import EdgepackError
from edgepack.finetune.graph.folder import ABOUT, AGAIN, GRAPH, INITIAL, About, read_about
from edgepack.finetune.graph.loss import IGNORED
from edgepack.finetune.graph.options import Parameter
from edgepack.finetune.graph.step import STATE
from edgepack.recover.adam import schedule
from edgepack.runtimes.onnx_check import reason
from edgepack.runtimes.onnx_runtime import bindings

Row = tuple[Sequence[int], Sequence[int]]
"""Token ids of a text, and for each the next token (−100: it does not count)."""
Adapters = dict[str, tuple[Tensor, Tensor]]
"""Hugging Face name of a weight → (lora_A ``[rank, in]``, lora_B ``[out, rank]``), float32."""
Vector = NDArray[np.float32]
RESULTS = tuple(f"{name}_out" for name in STATE)
FACTORS_HINT = "it should be a factors.safetensors that training wrote"
OTHER_RUN = "remove the file, or give the same folder, rows and settings as before"


def next_tokens(ids: Sequence[int], counted: Sequence[bool] | None = None) -> list[int]:
    """The labels of a text: each position's next token, −100 for those that are not `counted` and
    for the last position."""
    wanted = counted or [True] * len(ids)
    return [i if w else IGNORED for i, w in zip(ids[1:], wanted[1:], strict=True)] + [IGNORED]


def _aligned(values: Vector) -> Vector:
    """A copy that begins at a multiple of 64 bytes: sums round differently for vectors that are
    aligned differently, and a resumed run must come to the same losses."""
    room = np.empty(values.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy: Vector = room[start : start + values.nbytes].view(np.float32)
    copy[:] = values
    return copy


@dataclass
class State:
    """The flat vectors after `len(losses)` steps, and the loss of each step (before its update)."""

    theta: Vector
    m: Vector
    v: Vector
    losses: list[float]

    def __post_init__(self) -> None:
        for name in STATE:
            setattr(self, name, _aligned(getattr(self, name)))


class TrainingSession:
    """A training graph in ONNX Runtime on the CPU."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.folder, self.about = folder, read_about(folder)
        self._ort = bindings()
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        if self.about.length is None:  # planning of buffers is quadratic in nodes without sizes
            options.enable_mem_reuse = False
        if threads:
            options.intra_op_num_threads = threads
        try:
            self._session: Any = self._ort.InferenceSession(
                folder / GRAPH, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its classes have no common base of their own
            where = shorten(str(folder), 100)
            raise EdgepackError(f"cannot load {where}: {reason(error)}", hint=AGAIN) from error
        self._outputs = [node.name for node in self._session.get_outputs()]
        if missing := sorted({"loss", "gradient_norm", *RESULTS} - set(self._outputs)):
            where = shorten(str(folder), 100)
            raise EdgepackError(f"{where}: the graph does not give {missing[0]}", hint=AGAIN)

    def first_state(self) -> State:
        """The state before the first step."""
        theta = np.fromfile(self.folder / INITIAL, "<f4").astype(np.float32)
        if theta.size != self.about.size:
            raise EdgepackError(
                f"{shorten(str(self.folder), 100)}: {INITIAL} has {theta.size} values, not "
                f"{self.about.size}",
                hint=AGAIN,
            )
        return State(theta, np.zeros_like(theta), np.zeros_like(theta), [])

    def step(self, state: State, rows: Sequence[Row], rate: float) -> float:
        """Train on `rows` (as many as the graph's batch) and change `state`; returns the loss.

        Raises `EdgepackError` if the loss is no finite number; the state is then unchanged.
        """
        ids, labels = self._batch(rows)
        number = len(state.losses) + 1
        feed = {name: getattr(state, name) for name in STATE}
        scalars = {"lr": np.array(rate, np.float32), "step": np.array(number, np.float32)}
        try:
            values = self._session.run(None, feed | scalars | {"input_ids": ids, "labels": labels})
        except Exception as error:  # its classes have no common base of their own
            where = shorten(str(self.folder), 100)
            raise EdgepackError(f"{where}: cannot be run: {reason(error)}", hint=AGAIN) from error
        found = dict(zip(self._outputs, values, strict=True))
        loss = float(found["loss"])
        if not np.isfinite(loss) or not np.isfinite(found["gradient_norm"]):
            raise EdgepackError(
                f"step {number}: the loss is {loss}", hint="a lower learning rate may help"
            )
        for name in STATE:
            getattr(state, name)[:] = found[f"{name}_out"]
        state.losses.append(loss)
        return loss

    def _batch(self, rows: Sequence[Row]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """ids and labels ``[batch, length]``, filled up with tokens that do not count."""
        width = self.about.length or max(len(ids) for ids, _ in rows)
        ids = np.zeros((len(rows), width), np.int64)
        labels = np.full((len(rows), width), IGNORED, np.int64)
        for index, (tokens, wanted) in enumerate(rows):
            ids[index, : len(tokens)] = tokens
            labels[index, : len(wanted)] = wanted
        return ids, labels


@dataclass(frozen=True)
class Trained:
    """The result of `train`."""

    about: About
    theta: Vector
    losses: list[float]

    @property
    def adapters(self) -> Adapters:
        """What was trained, by weight."""
        return split(self.about.matrices(), self.theta)

    def write_factors(self, path: Path) -> None:
        """Write the matrices as ``factors.safetensors``, which graphs for browsers take as inputs
        (see `export.profiles`)."""
        values = {
            p.name: self.theta[p.offset : p.stop].reshape(p.shape).astype(np.float16)
            for p in self.about.matrices()
        }
        with atomic(path) as temporary:
            save_file(values, temporary)


def split(parameters: Sequence[Parameter], theta: Vector) -> Adapters:
    """The flat vector as pairs of matrices."""
    found: dict[str, dict[str, Tensor]] = {}
    for p in parameters:
        value = torch.from_numpy(theta[p.offset : p.stop].reshape(p.shape).T.copy())
        found.setdefault(p.weight, {})[p.part] = value
    return {weight: (pair["R"], pair["L"]) for weight, pair in found.items()}


def read_factors(path: Path) -> Adapters:
    """The pairs in a ``factors.safetensors``, as this module and the page train.html write it."""
    try:
        values = load_file(path)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        where = shorten(str(path), 120)
        message = f"cannot read {where}: {reason(error)}"
        raise EdgepackError(message, hint=FACTORS_HINT) from error
    found: Adapters = {}
    for name in (key for key in values if key.endswith(".lora_A")):
        module = name.removesuffix(".lora_A")
        other = values.get(f"{module}.lora_B")
        both_flat = other is not None and values[name].ndim == other.ndim == 2
        if other is None or not both_flat or values[name].shape[1] != other.shape[0]:
            raise EdgepackError(
                f"{shorten(str(path), 120)}: {shorten(name, 80)} has no partner of its rank",
                hint=FACTORS_HINT,
            )
        pair = (torch.from_numpy(v.T.astype(np.float32)) for v in (values[name], other))
        found[f"{module}.weight"] = next(pair), next(pair)
    return found


def train(
    folder: Path,
    rows: Sequence[Row],
    *,
    steps: int,
    rate: float,
    state_file: Path | None = None,
    every: int = 10,
    seed: int = 0,
    threads: int | None = None,
) -> Steps[Trained]:
    """Train for `steps` steps, with a linear start and cosine decay of the learning rate.

    With a `state_file`, the state is written there every so many steps, and a run that was killed
    goes on from it; on the same number of threads, with the same losses. The file is refused if it
    belongs to another run.
    """
    session = TrainingSession(folder, threads)
    _check_rows(rows, session.about)
    key = _run_key(folder, rows, {"steps": steps, "rate": rate, "seed": seed})
    state = _read_state(state_file, key, session.about.size) if state_file else None
    state = state or session.first_state()
    while len(state.losses) < steps:
        done = len(state.losses)
        label = f"loss {state.losses[-1]:.4f}" if state.losses else ""
        yield Progress("train", done, steps, label)
        batch = _choose(len(rows), session.about.batch, done, seed)
        session.step(state, [rows[i] for i in batch], rate * schedule(done, steps))
        if state_file and (len(state.losses) % every == 0 or len(state.losses) == steps):
            _write_state(state_file, key, state)
    return Trained(session.about, state.theta, state.losses)


def _choose(count: int, batch: int, step: int, seed: int) -> list[int]:
    """The rows of a step: every row once before any comes again, in an order that depends on
    nothing but the seed."""
    places = range(step * batch, (step + 1) * batch)
    orders = {
        e: np.random.default_rng([seed, e]).permutation(count)
        for e in {place // count for place in places}
    }
    return [int(orders[place // count][place % count]) for place in places]


def _check_rows(rows: Sequence[Row], about: About) -> None:
    """Refuse rows that the graph would cut off, or whose tokens it does not know."""
    most = about.length or about.context
    if not rows:
        raise EdgepackError("there are no rows to train on", hint="a row is a text's token ids")
    for index, (ids, labels) in enumerate(rows, 1):
        problem = ""
        if len(ids) != len(labels) or not ids:
            problem = f"has {len(ids)} tokens and {len(labels)} labels"
        elif len(ids) > most:
            problem = f"has {len(ids)} tokens, the graph takes {most}"
        elif not all(0 <= i < about.vocab_size for i in ids):
            problem = "has tokens that the model does not know"
        elif not all(i == IGNORED or 0 <= i < about.vocab_size for i in labels):
            problem = "has labels that the model does not know"
        elif all(i == IGNORED for i in labels):
            problem = "has no label that counts"
        if problem:
            raise EdgepackError(f"row {index} {problem}", hint="cut or leave out such rows")


def _run_key(folder: Path, rows: Sequence[Row], settings: Mapping[str, Any]) -> str:
    """Digest of everything that the losses depend on."""
    digest = hashlib.sha256((folder / ABOUT).read_bytes() + (folder / INITIAL).read_bytes())
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for ids, labels in rows:
        digest.update(np.asarray([*ids, *labels, len(ids)], np.int64).tobytes())
    return digest.hexdigest()


def _write_state(path: Path, key: str, state: State) -> None:
    about = {"run": key, "losses": json.dumps(state.losses)}
    with atomic(path) as temporary:
        save_file({name: getattr(state, name) for name in STATE}, temporary, about)
        sort_texts(temporary)


def _read_state(path: Path, key: str, size: int) -> State | None:
    """The state in a file; None if there is none."""
    if not path.exists():
        return None
    where = shorten(str(path), 120)
    try:
        with safe_open(path, framework="np") as file:
            about = file.metadata() or {}
            if about.get("run") != key:
                raise EdgepackError(f"{where}: is the state of another run", hint=OTHER_RUN)
            values = {name: file.get_tensor(name) for name in STATE}
            losses = [float(loss) for loss in json.loads(about["losses"])]
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise EdgepackError(f"cannot read {where}: {reason(error)}", hint=OTHER_RUN) from error
    if any(value.shape != (size,) or value.dtype != np.float32 for value in values.values()):
        raise EdgepackError(f"{where}: is the state of another graph", hint=OTHER_RUN)
    return State(values["theta"], values["m"], values["v"], losses)
