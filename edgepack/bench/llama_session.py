"""llama.cpp for the worker: what llama-bench does with the C functions, and adapters besides."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.bench.protocol import RunModel
from edgepack.runtimes._llama_library import bindings, checked, extra_buffers_are_safe
from edgepack.runtimes.ggml import library

BATCH, MICRO_BATCH = 2048, 512
"""llama.cpp's (and llama-bench's) defaults: most tokens of a call, and of one product."""


def about() -> tuple[str, str]:
    """Name and version of the library, and the features of the CPU that it uses."""
    lib = bindings()
    features = lib.llama_print_system_info().decode("utf-8", "replace")
    return f"llama.cpp, ggml {library().ggml_version().decode()}", features.strip(" |")


class LlamaSession:
    """A `worker.Session`: a .gguf file with adapters at their scales. Keys and values are f16,
    flash attention is llama.cpp's choice, weights are mapped; all of that is llama-bench's default
    too, but for weights in other layouts (`extra_buffers_are_safe`)."""

    def __init__(self, job: RunModel) -> None:
        self._lib, self._threads, self._context = bindings(), job.threads, None
        params = self._lib.llama_model_default_params()
        params.use_extra_bufts = extra_buffers_are_safe()
        self._model = checked(
            f"cannot load {Path(job.model).name}",
            lambda: self._lib.llama_model_load_from_file(os.fsencode(job.model), params),
        )
        self._adapters = [(self._attach(path), scale) for path, scale in job.adapters]
        vocab = self._lib.llama_model_get_vocab(self._model)
        self.vocab_size: int = self._lib.llama_vocab_n_tokens(vocab)
        self._batch = self._lib.llama_batch_init(BATCH, 0, 1)
        self._position = 0

    def _attach(self, path: str) -> Any:
        return checked(
            f"cannot use the adapter {Path(path).name}",
            lambda: self._lib.llama_adapter_lora_init(self._model, os.fsencode(path)),
        )

    def start(self, context: int, batch: int) -> None:
        """See `worker.Session`."""
        lib = self._lib
        if self._context is not None:
            lib.llama_free(self._context)
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = context, batch, batch > 1
        params.n_batch, params.n_ubatch = BATCH, MICRO_BATCH
        params.n_threads = params.n_threads_batch = self._threads
        params.no_perf = True
        self._context = checked(
            f"cannot allocate a context of {context} tokens",
            lambda: lib.llama_init_from_model(self._model, params),
        )
        loras = [lora for lora, _ in self._adapters]
        every = (lib.llama_adapter_lora_p_ctypes * len(loras))(*loras)
        scales = (ctypes.c_float * len(loras))(*(scale for _, scale in self._adapters))
        checked(
            "cannot use the adapters",
            lambda: lib.llama_set_adapters_lora(self._context, every, len(loras), scales) == 0,
        )
        self._position = 0

    def run(self, ids: NDArray[np.int64]) -> None:
        """See `worker.Session`."""
        sequences, length = ids.shape
        columns = BATCH // sequences
        for first in range(0, length, columns):
            last = min(first + columns, length)
            self._fill(ids[:, first:last], has_logits=last == length)
            checked("llama.cpp failed", lambda: self._decode() == 0)
            self._position += last - first
        self._lib.llama_synchronize(self._context)

    def _decode(self) -> int:
        done: int = self._lib.llama_decode(self._context, self._batch)
        return done

    def _fill(self, ids: NDArray[np.int64], *, has_logits: bool) -> None:
        """Put tokens into the batch, one sequence after the other."""
        length, batch = ids.shape[1], self._batch
        batch.n_tokens = ids.size
        for i, token in enumerate(ids.reshape(-1).tolist()):
            sequence, offset = divmod(i, length)
            batch.token[i], batch.pos[i] = token, self._position + offset
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = has_logits and offset == length - 1
