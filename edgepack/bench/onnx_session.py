"""ONNX Runtime for the worker: decoders whose keys and values are inputs and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.bench.protocol import RunModel
from edgepack.core import telemetry
from edgepack.errors import EdgepackError, missing_extra

QUIET = 3
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
GIVEN = "factors.safetensors"
"""Factors that are inputs, in folders for browsers."""


def _onnxruntime() -> Any:
    try:
        return telemetry.onnxruntime()
    except ImportError:
        raise missing_extra("onnxruntime", "onnx") from None


def about() -> tuple[str, str]:
    """Name and version of the library; it does not tell what of the CPU it uses."""
    return f"ONNX Runtime {_onnxruntime().__version__}", ""


class OnnxSession:
    """A `worker.Session`: an .onnx file on the CPU; an .onnx_adapter takes the place of the
    factors in the graph."""

    def __init__(self, job: RunModel) -> None:
        ort = self._ort = _onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = QUIET, job.threads
        providers = ["CPUExecutionProvider"]
        try:
            self._session: Any = ort.InferenceSession(job.model, options, providers=providers)
        except Exception as error:  # its classes have no common base of their own
            raise EdgepackError(f"cannot load {Path(job.model).name}: {error}") from error
        self._inputs = {node.name: node for node in self._session.get_inputs()}
        self._past = [name for name in self._inputs if name.startswith("past_key_values.")]
        present = [name.replace("past_key_values", "present", 1) for name in self._past]
        self._outputs = ["logits", *present]
        last = next(node for node in self._session.get_outputs() if node.name == "logits")
        self.vocab_size = int(last.shape[-1])
        self._given = self._factors(Path(job.model).parent / GIVEN)
        self._options, self._adapter = self._attach([path for path, _ in job.adapters])
        self._state: list[Any] = []

    def _factors(self, path: Path) -> dict[str, Any]:
        if not path.is_file():
            return {}
        from safetensors.numpy import load_file

        values = load_file(path)
        return {name: self._value(v) for name, v in values.items() if name in self._inputs}

    def _attach(self, paths: list[str]) -> tuple[Any, Any]:
        """Run options with an adapter; both objects have to stay alive."""
        if not paths:
            return None, None
        options, adapter = self._ort.RunOptions(), self._ort.LoraAdapter()
        try:
            adapter.Load(paths[0])
        except Exception as error:
            raise EdgepackError(f"cannot use the adapter {Path(paths[0]).name}: {error}") from error
        options.add_active_adapter(adapter)
        return options, adapter

    def _value(self, array: NDArray[Any]) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))

    def start(self, context: int, batch: int) -> None:
        """See `worker.Session`. Keys and values grow with what is run: `context` is not needed."""
        self._state = [
            self._value(np.zeros((batch, node.shape[1], 0, node.shape[3]), TYPES[node.type]))
            for node in map(self._inputs.__getitem__, self._past)
        ]

    def run(self, ids: NDArray[np.int64]) -> None:
        """See `worker.Session`. Graphs with `num_logits_to_keep` make those of the last token
        only, others make all."""
        rows, time = ids.shape
        start = self._state[0].shape()[2] if self._state else 0
        feed = {
            "input_ids": ids,
            "attention_mask": np.ones((rows, start + time), np.int64),
            "position_ids": np.tile(np.arange(start, start + time), (rows, 1)),
            "num_logits_to_keep": np.ones((), np.int64),
        }
        values = {name: self._value(v) for name, v in feed.items() if name in self._inputs}
        values |= dict(zip(self._past, self._state, strict=True)) | self._given
        try:
            _, *self._state = self._session.run_with_ort_values(
                self._outputs, values, self._options
            )
        except Exception as error:
            raise EdgepackError(f"cannot be run: {error}") from error
