"""ONNX Runtime on the CPU, for decoders whose keys and values are inputs and outputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from edgepack.core import telemetry
from edgepack.core.untrusted import shorten
from edgepack.errors import EdgepackError, missing_extra
from edgepack.runtimes import onnx_check
from edgepack.runtimes._sampling import Sampler
from edgepack.runtimes.base import (
    LIKELIEST,
    PENALTY_WINDOW,
    Closing,
    Sampling,
    check_length,
    check_memory,
    check_scales,
)
from edgepack.runtimes.forks import Fork, check_fits
from edgepack.runtimes.hf_tokenizer import HfTokenizer
from edgepack.runtimes.onnx_adapters import GIVEN, OnnxAdapters, factors_file, read_arrays
from edgepack.runtimes.onnx_check import (
    AGAIN,
    GENAI,
    check_decoder,
    model_file,
    read_numbers,
    reason,
)

__all__ = ["GENAI", "OnnxRuntime", "bindings", "data_files", "model_file"]
_QUIET = 3  # errors only; it warns of every initializer that is an input too
_FED = ("input_ids", "attention_mask", "position_ids", "num_logits_to_keep")
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def bindings() -> Any:
    """The module ``onnxruntime``."""
    try:
        return telemetry.onnxruntime()
    except ImportError:
        raise missing_extra("onnxruntime", "onnx") from None


def data_files(model: Path) -> list[Path]:
    """The files with a graph's tensors, and with factors that it takes as inputs."""
    given = _given_factors(model)
    return sorted({*onnx_check.data_files(model), *([given] if given else [])})


def _given_factors(model: Path) -> Path | None:
    """The file of factors that are inputs, as in graphs for browsers (see `export.profiles`)."""
    found = factors_file(model)
    return found if found and found.name == GIVEN else None


class OnnxRuntime(Closing):
    """A `Runtime`: an .onnx file, with the tokenizer of the folder it is in (or the one above).

    `adapter` (an .onnx_adapter file) replaces factors that are in the graph; `adapters` (see
    `Model.adapters`) are added to them at their scales. `context` is at most the graph's. `threads`
    defaults to the number of physical cores.
    """

    def __init__(
        self,
        model: Path,
        adapter: Path | None = None,
        context: int = 512,
        threads: int | None = None,
        sequences: int = 1,
        adapters: Sequence[tuple[Path, float]] = (),
    ) -> None:
        self.context, self.sequences = context, sequences
        self._ort = bindings()
        self._place = shorten(str(model), 120)
        data_files(model)  # checks that none is outside its folder
        self._session: Any = self._load(model, threads or psutil.cpu_count(logical=False) or 1)
        if adapter and adapters:
            raise ValueError("a file that replaces the factors, and adapters that add to them")
        self._options = self._attach(adapter) if adapter else None
        try:
            self._inputs = {node.name: node for node in self._session.get_inputs()}
            outputs = {node.name: node for node in self._session.get_outputs()}
            check_decoder(self._place, self._inputs, outputs)
        except UnicodeDecodeError as error:  # ONNX Runtime does not check names
            message = f"{self._place}: names in the graph are no UTF-8"
            raise EdgepackError(message, hint=AGAIN) from error
        self._past = [name for name in self._inputs if name.startswith("past_key_values.")]
        self._present = [name.replace("past_key_values", "present", 1) for name in self._past]
        self._given = {} if adapter else self._factors(model)
        self._adapters = self._adapt(model, [path for path, _ in adapters])
        self._folder = next(
            (f for f in model.resolve().parents[:2] if (f / "tokenizer.json").is_file()), None
        )
        if self._folder is None:
            raise EdgepackError(
                f"{self._place}: there is no tokenizer.json beside it",
                hint="copy the model's there",
            )
        self._numbers = read_numbers(self._folder)
        self.context = min(context, self._numbers.positions)
        self._tokenizer = HfTokenizer(self._folder)
        self.bos = self._tokenizer.bos
        last = outputs["logits"].shape[-1]
        self.vocab_size: int = self._size(last, self._numbers.vocab_size, "vocab_size")
        check_memory(self.context, 4 * self.vocab_size)
        self.set_scales([scale for _, scale in adapters])

    def _load(self, path: Path, threads: int) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = _QUIET
        options.intra_op_num_threads = threads
        try:
            return self._ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its classes have no common base of their own
            raise EdgepackError(
                f"cannot load {self._place}: {reason(error)}",
                hint="its files must be whole and lie together; build or copy the folder again",
            ) from error

    def _attach(self, adapter: Path) -> Any:
        """Run options that use the adapter; both objects must stay alive."""
        options, self._replaced = self._ort.RunOptions(), self._ort.LoraAdapter()
        try:
            self._replaced.Load(str(adapter))
        except Exception as error:
            raise EdgepackError(
                f"cannot use the adapter {shorten(str(adapter), 120)}: {reason(error)}",
                hint="it is no .onnx_adapter file",
            ) from error
        options.add_active_adapter(self._replaced)
        return options

    def _factors(self, model: Path) -> dict[str, Any]:
        """Values of the inputs that are L and R."""
        path = _given_factors(model)
        found = read_arrays(path) if path else {}
        values = {name: value for name, value in found.items() if name in self._inputs}
        missing = set(self._inputs) - set(values) - set(self._past) - set(_FED)
        if missing:
            raise EdgepackError(
                f"{self._place}: takes {shorten(min(missing), 80)}, which nothing here gives",
                hint="factors.safetensors belongs into its folder",
            )
        return {name: self._value(value) for name, value in values.items()}

    def _adapt(self, model: Path, adapters: Sequence[Path]) -> OnnxAdapters | None:
        """The user's adapters, checked against the graph."""
        if not adapters:
            return None
        replaced = [node.name for node in self._session.get_overridable_initializers()]
        return OnnxAdapters(model, {*self._inputs, *replaced}, adapters)

    def set_scales(self, scales: Sequence[float]) -> None:
        """See `Runtime.set_scales`."""
        check_scales(scales, self._adapters.count if self._adapters else 0)
        if self._adapters:
            values = self._adapters.values(scales)
            self._given |= {name: self._value(value) for name, value in values.items()}

    def _empty(self, name: str, rows: int) -> Any:
        """Empty keys or values, ``[rows, kv_heads, 0, head_dim]``."""
        node, known = self._inputs[name], self._numbers
        heads = self._size(node.shape[1], known.key_value_heads, "num_key_value_heads")
        width = self._size(node.shape[3], known.head_dim, "head_dim")
        return self._value(np.zeros((rows, heads, 0, width), _TYPES[node.type]))

    def _size(self, own: int | str | None, known: int | None, key: str) -> int:
        """A dimension of the graph; from its settings if the graph only names it."""
        found = own if isinstance(own, int) else known
        if found is None:
            raise EdgepackError(
                f"{self._place}: neither it nor config.json says {key}",
                hint="build the folder again",
            )
        return found

    def _value(self, array: NDArray[Any]) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))

    def _run(
        self, ids: NDArray[np.int64], past: Sequence[Any] | None, *, keep: bool
    ) -> tuple[NDArray[np.float32], list[Any]]:
        """Logits ``[rows, time, vocab]`` of ids ``[rows, time]`` after the keys and values `past`,
        and the new keys and values (if `keep`)."""
        rows, time = ids.shape
        if past is None:
            past = [self._empty(name, rows) for name in self._past]
        start = past[0].shape()[2] if past else 0
        feed = {
            "input_ids": ids,
            "attention_mask": np.ones((rows, start + time), np.int64),
            "position_ids": np.tile(np.arange(start, start + time), (rows, 1)),
            "num_logits_to_keep": np.zeros((), np.int64),
        }
        values = {name: self._value(v) for name, v in feed.items() if name in self._inputs}
        values |= dict(zip(self._past, past, strict=True)) | self._given
        wanted = ["logits", *(self._present if keep else [])]
        try:
            logits, *present = self._session.run_with_ort_values(wanted, values, self._options)
            found: NDArray[np.float32] = logits.numpy().astype(np.float32, copy=False)
        except Exception as error:  # its classes have no common base of their own
            raise self._failed(error) from error
        if found.shape != (rows, time, self.vocab_size):
            raise EdgepackError(
                f"{self._place}: gives logits {list(found.shape)} of {time} tokens, "
                f"not of a vocabulary of {self.vocab_size}",
                hint=AGAIN,
            )
        return found, present

    def _failed(self, error: Exception) -> EdgepackError:
        """The error for a run that ONNX Runtime aborted."""
        if self._options is None and not self._given:
            return EdgepackError(f"{self._place}: cannot be run: {reason(error)}", hint=AGAIN)
        return EdgepackError(
            f"what is given for L and R does not fit the graph: {reason(error)}",
            hint="it belongs to the folder that it was made with",
        )

    def logits(self, tokens: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """See `Scorer.logits`."""
        check_length(tokens, self.context)
        found, _ = self._run(np.array([tokens], np.int64), None, keep=False)
        return found[0, first:]

    def branches(self, forks: Sequence[Fork]) -> Iterator[NDArray[np.float32]]:
        """See `Scorer.branches`. A fork's stem is computed once, then its branches one by one,
        because GroupQueryAttention appends several tokens to a history in one row only."""
        check_fits(forks, self.context, self.sequences)
        for fork in forks:
            *stem, last = fork.stem
            past = None
            if stem:
                _, past = self._run(np.array([stem], np.int64), None, keep=True)
            for branch in fork.branches:
                ids = np.array([[last, *branch[:-1]]], np.int64)
                yield self._run(ids, past, keep=False)[0][0]

    def generate(
        self,
        tokens: Sequence[int],
        max_tokens: int = 256,
        sampling: Sampling = LIKELIEST,
        stop: Collection[int] = (),
    ) -> Iterator[int]:
        """See `Runtime.generate`."""
        check_length(tokens, self.context)
        sampler, recent = Sampler(sampling), deque[int](maxlen=PENALTY_WINDOW)
        logits, past = self._run(np.array([tokens], np.int64), None, keep=True)
        for _ in range(min(max_tokens, self.context - len(tokens))):
            token = sampler(logits[0, -1], recent)
            ends = token in self._tokenizer.ends and not sampling.ignore_eos
            if token in stop or ends:
                return
            yield token
            recent.append(token)
            logits, past = self._run(np.array([[token]], np.int64), past, keep=True)

    def tokenize(self, text: str, *, bos: bool = True, special: bool = False) -> list[int]:
        """See `Scorer.tokenize`."""
        return self._tokenizer.tokenize(text, bos=bos, special=special)

    def piece(self, token: int) -> bytes:
        """See `Runtime.piece`."""
        return self._tokenizer.piece(token)

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """See `Runtime.chat_prompt`."""
        return self._tokenizer.chat_prompt(messages)

    def close(self) -> None:
        """See `Scorer.close`."""
        self._session = None
