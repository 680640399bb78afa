"""llama.cpp in this process, through llama-cpp-python's bindings to the C functions.

The package's own class `Llama` cannot set `use_extra_bufts`, without which some machines die
(`extra_buffers_are_safe`), nor an adapter's path together with logits of all positions.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from edgepack.core.untrusted import shorten
from edgepack.runtimes._llama_adapters import LlamaAdapters
from edgepack.runtimes._llama_library import bindings, checked, extra_buffers_are_safe
from edgepack.runtimes._llama_texts import LlamaTexts
from edgepack.runtimes.base import (
    LIKELIEST,
    PENALTY_WINDOW,
    Closing,
    Sampling,
    check_length,
    check_memory,
    check_numbers,
)
from edgepack.runtimes.forks import Fork, Step, check_fits, layout
from edgepack.runtimes.gguf_check import cache_bytes, check_model, read_encodable

_MICRO_BATCH = 512  # llama.cpp's default, here so that a long context does not raise it


class LlamaCpp(Closing):
    """A `Runtime`: base.gguf, and factors.gguf on top of it at scale 1 when `adapter` is given.

    `adapters` are more GGUF adapters with their scales, which `set_scales` changes. `threads`
    defaults to the number of physical cores. `sequences` above 1 is for `branches`; they share the
    `context` tokens.
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
        self._lib = bindings()
        self._model = self._ctx = None
        self.context, self.sequences = context, sequences
        header = check_model(model)
        self._adapters = LlamaAdapters(header, adapter, [path for path, _ in adapters])
        check_memory(context, cache_bytes(header))
        self._encodable = read_encodable(header)
        try:
            self._model = self._load(model)
            self._adapters.load(self._model)
            self._ctx = self._open(context, threads or psutil.cpu_count(logical=False) or 1)
            self.set_scales([scale for _, scale in adapters])
        except BaseException:
            self.close()
            raise
        lib = self._lib
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._texts = LlamaTexts(self._model)
        self._more_ends = self._texts.more_ends()
        self.vocab_size: int = lib.llama_vocab_n_tokens(self._vocab)
        self.bos = self._texts.bos

    def _load(self, path: Path) -> Any:
        params = self._lib.llama_model_default_params()
        params.use_extra_bufts = extra_buffers_are_safe()
        return checked(
            f"cannot load {shorten(str(path), 120)}",
            lambda: self._lib.llama_model_load_from_file(os.fsencode(path), params),
        )

    def _open(self, context: int, threads: int) -> Any:
        params = self._lib.llama_context_default_params()
        params.n_ctx = params.n_batch = context
        params.n_ubatch = min(context, _MICRO_BATCH)
        params.n_threads = params.n_threads_batch = threads
        params.n_seq_max, params.kv_unified = self.sequences, self.sequences > 1
        params.no_perf = True
        return checked(
            f"cannot allocate a context of {context} tokens",
            lambda: self._lib.llama_init_from_model(self._model, params),
        )

    def set_scales(self, scales: Sequence[float]) -> None:
        """See `Runtime.set_scales`."""
        self._adapters.scale(self._ctx, scales)
        self._forget()

    def _decode(self, steps: Sequence[Step]) -> None:
        """Run a batch of tokens after the tokens that were run before."""
        batch = self._lib.llama_batch_init(len(steps), 0, self.sequences)
        try:
            batch.n_tokens = len(steps)
            for i, step in enumerate(steps):
                batch.token[i], batch.pos[i], batch.logits[i] = (
                    step.token,
                    step.position,
                    step.has_logits,
                )
                batch.n_seq_id[i] = len(step.sequences)
                for j, sequence in enumerate(step.sequences):
                    batch.seq_id[i][j] = sequence
            checked("llama.cpp failed", lambda: self._lib.llama_decode(self._ctx, batch) == 0)
        finally:
            self._lib.llama_batch_free(batch)

    def _start(self, tokens: Sequence[int], first: int) -> None:
        """Run tokens without history; logits for those from index `first` on."""
        check_length(tokens, self.context)
        self._forget()
        self._decode([Step(token, i, (0,), i >= first) for i, token in enumerate(tokens)])

    def _forget(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._ctx), True)

    def _last_logits(self, rows: int) -> NDArray[np.float32]:
        """The `rows` logits of the last batch; a view that is valid until the next batch."""
        found = self._lib.llama_get_logits(self._ctx)
        return np.ctypeslib.as_array(found, (rows, self.vocab_size))

    def logits(self, tokens: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """See `Runtime.logits`."""
        self._start(tokens, first)
        return np.array(self._last_logits(len(tokens) - first), np.float32)

    def branches(self, forks: Sequence[Fork]) -> Iterator[NDArray[np.float32]]:
        """See `Runtime.branches`."""
        check_fits(forks, self.context, self.sequences)
        steps, rows = layout(forks)
        self._forget()
        self._decode(steps)
        found = self._last_logits(sum(step.has_logits for step in steps))
        yield from (found[row] for row in rows)  # indexing with a list copies

    def generate(
        self,
        tokens: Sequence[int],
        max_tokens: int = 256,
        sampling: Sampling = LIKELIEST,
        stop: Collection[int] = (),
    ) -> Iterator[int]:
        """See `Runtime.generate`."""
        sampler = self._sampler(sampling)
        try:
            self._start(tokens, len(tokens) - 1)
            end = min(len(tokens) + max_tokens, self.context)
            for position in range(len(tokens), end):
                check_numbers(self._last_logits(1))
                token: int = self._lib.llama_sampler_sample(sampler, self._ctx, -1)
                ends = self._lib.llama_vocab_is_eog(self._vocab, token) or token in self._more_ends
                if token in stop or (ends and not sampling.ignore_eos):
                    return
                yield token
                self._decode([Step(token, position, (0,), True)])
        finally:
            self._lib.llama_sampler_free(sampler)

    def _sampler(self, sampling: Sampling) -> Any:
        lib = self._lib
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if sampling.repeat_penalty != 1.0:
            penalties = (self.vocab_size, PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0)
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_penalties(*penalties))
        if sampling.temperature > 0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(sampling.top_k))
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(sampling.top_p, 1))
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(sampling.temperature))
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(sampling.seed))
        else:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
        return chain

    def tokenize(self, text: str, *, bos: bool = True, special: bool = False) -> list[int]:
        """See `Runtime.tokenize`."""
        data = text.encode("utf-8", "replace")
        self._encodable.check(text)
        room = len(data) + 2  # a token has at least a byte; BOS and EOS have none
        out = (self._lib.llama_token * room)()
        found = self._lib.llama_tokenize(self._vocab, data, len(data), out, room, bos, special)
        if found < 0:  # byte fallback with a prefix space can need more
            out = (self._lib.llama_token * -found)()
            found = self._lib.llama_tokenize(
                self._vocab, data, len(data), out, -found, bos, special
            )
        return list(out[:found])

    def piece(self, token: int) -> bytes:
        """See `Runtime.piece`."""
        buffer = ctypes.create_string_buffer(64)
        size = self._lib.llama_token_to_piece(self._vocab, token, buffer, 64, 0, False)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = self._lib.llama_token_to_piece(self._vocab, token, buffer, -size, 0, False)
        return buffer.raw[:size]

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """See `Runtime.chat_prompt`."""
        return self._texts.chat_prompt(messages)

    def close(self) -> None:
        """See `Runtime.close`."""
        if self._ctx is not None:
            self._lib.llama_free(self._ctx)
        if self._model is not None:
            self._lib.llama_model_free(self._model)
        self._model = self._ctx = None
