"""llama.cpp in this process, through llama-cpp-python's bindings to the C functions.

The package's own class `Llama` cannot set `use_extra_bufts`, without which some machines die
(`extra_buffers_are_safe`), nor an adapter's path together with logits of all positions.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from edgepack.checkpoint.special import MORE_ENDS, gguf_ends
from edgepack.checkpoint.tokenizer import TEMPLATE, TEMPLATE_PREFIX
from edgepack.core.untrusted import shorten
from edgepack.runtimes._llama_library import bindings, checked, extra_buffers_are_safe
from edgepack.runtimes.base import (
    LIKELIEST,
    PENALTY_WINDOW,
    Closing,
    Sampling,
    check_length,
    check_memory,
    check_numbers,
    check_scales,
)
from edgepack.runtimes.chat import render
from edgepack.runtimes.forks import Fork, Step, check_fits, layout
from edgepack.runtimes.gguf_check import (
    HOLDS_FACTORS,
    cache_bytes,
    check_adapter,
    check_model,
    read_encodable,
)

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
        paths = [*([adapter] if adapter else []), *(path for path, _ in adapters)]
        headers = [check_adapter(path, header) for path in paths]
        self._replaces = [HOLDS_FACTORS in one.metadata for one in headers]
        check_memory(context, cache_bytes(header))
        self._encodable = read_encodable(header)
        try:
            self._model = self._load(model)
            # before the context is made, whose buffers have room for all of them
            self._fixed, self._loras = int(adapter is not None), list(map(self._attach, paths))
            self._ctx = self._open(context, threads or psutil.cpu_count(logical=False) or 1)
            self.set_scales([scale for _, scale in adapters])
        except BaseException:
            self.close()
            raise
        lib = self._lib
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.vocab_size: int = lib.llama_vocab_n_tokens(self._vocab)
        add_bos = lib.llama_vocab_get_add_bos(self._vocab)
        self.bos: int | None = lib.llama_vocab_bos(self._vocab) if add_bos else None
        self._more_ends = gguf_ends({MORE_ENDS: self._metadata_text(MORE_ENDS) or ""})

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

    def _attach(self, path: Path) -> Any:
        """Load an adapter, which is freed with the model."""
        return checked(
            f"cannot use the adapter {shorten(str(path), 120)}",
            lambda: self._lib.llama_adapter_lora_init(self._model, os.fsencode(path)),
        )

    def set_scales(self, scales: Sequence[float]) -> None:
        """See `Runtime.set_scales`. An adapter that is L·R + ΔW, at scale s beside 1 − s of the
        factors, makes L·R + s·ΔW: at scale 1 there are as many products as without it."""
        check_scales(scales, len(self._loras) - self._fixed)
        replacing = zip(self._replaces[self._fixed :], scales, strict=True)
        factors = 1.0 - sum(scale for replaces, scale in replacing if replaces)
        every = zip(self._loras, [factors] * self._fixed + list(scales), strict=True)
        used = [(lora, scale) for lora, scale in every if scale]
        adapters = (self._lib.llama_adapter_lora_p_ctypes * len(used))(*(lora for lora, _ in used))
        values = (ctypes.c_float * len(used))(*(scale for _, scale in used))
        set_adapters = self._lib.llama_set_adapters_lora
        checked(
            "cannot use the adapters",
            lambda: set_adapters(self._ctx, adapters, len(used), values) == 0,
        )
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
        names = ("bos", "eos", "pad", "sep")
        special = {
            f"{name}_token": self._token_text(
                getattr(self._lib, f"llama_vocab_{name}")(self._vocab)
            )
            for name in names
        }
        return render(self._templates(), messages, special)

    def _templates(self) -> str | dict[str, str] | None:
        """The chat template; all templates by name, if none is the default."""
        if (default := self._metadata_text(TEMPLATE)) is not None:
            return default
        keys = (
            self._string(self._lib.llama_model_meta_key_by_index, index)
            for index in range(self._lib.llama_model_meta_count(self._model))
        )
        named = [key for key in keys if key and key.startswith(TEMPLATE_PREFIX)]
        return {
            key.removeprefix(TEMPLATE_PREFIX): self._metadata_text(key) or "" for key in named
        } or None

    def _metadata_text(self, key: str) -> str | None:
        """The text under a key of the file's metadata."""
        return self._string(self._lib.llama_model_meta_val_str, key.encode())

    def _string(self, function: Callable[..., int], which: Any) -> str | None:
        """The text that a C function writes into a buffer; None if it returns a length below 0."""
        size = function(self._model, which, None, 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        function(self._model, which, buffer, size + 1)
        return buffer.value.decode("utf-8", "replace")

    def _token_text(self, token: int) -> str:
        """A control token as a template writes it; none for the missing token −1."""
        text: bytes = self._lib.llama_vocab_get_text(self._vocab, token) if token >= 0 else b""
        return text.decode()

    def close(self) -> None:
        """See `Runtime.close`."""
        if self._ctx is not None:
            self._lib.llama_free(self._ctx)
        if self._model is not None:
            self._lib.llama_model_free(self._model)
        self._model = self._ctx = None
