"""llama-cpp-python's class `Llama`, which its server runs, made safe for edgepack's models.

It has no setting for AMX (`extra_buffers_are_safe`), several adapters, llama.cpp's own choice of
attention, or tokens that end an answer beside llama.cpp's own; and adapters differ from request to
request here.
"""

from __future__ import annotations

import codecs
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from llama_cpp import Llama
from llama_cpp.llama_chat_format import ChatFormatterResponse as Prompt
from llama_cpp.llama_chat_format import chat_formatter_to_chat_completion_handler as handler
from numpy.typing import NDArray

from edgepack.errors import EdgepackError
from edgepack.runtimes._llama_adapters import LlamaAdapters
from edgepack.runtimes._llama_library import bindings, extra_buffers_are_safe
from edgepack.runtimes._llama_texts import LlamaTexts
from edgepack.runtimes.base import check_memory
from edgepack.runtimes.gguf_check import cache_bytes, check_model, read_encodable


class ServedLlama(Llama):  # type: ignore[misc]  # the package has no types for mypy
    """A model with its factors, and adapters that are switched off until `switch` is called.

    Chats are rendered as `edgepack chat` renders them.
    """

    def __init__(
        self,
        model: Path,
        factors: Path | None = None,
        adapters: Mapping[str, Path] | None = None,
        context: int = 2048,
        threads: int | None = None,
    ) -> None:
        bindings()  # first of all, because it keeps the library's log from the terminal
        self._names = list(adapters or {})
        self._scales: tuple[float, ...] | None = None
        self._stopped = threading.Event()
        header = check_model(model)
        self._adapters = LlamaAdapters(header, factors, list((adapters or {}).values()))
        check_memory(context, cache_bytes(header))
        self._encodable = read_encodable(header)
        threads = threads or psutil.cpu_count(logical=False) or 1
        try:
            super().__init__(
                model_path=str(model),
                n_ctx=context,
                n_threads=threads,
                n_threads_batch=threads,
                chat_handler=handler(self._format),
                verbose=False,
            )
        except ValueError as error:  # all that it says of llama.cpp's reasons
            raise EdgepackError(f"{model}: {error}", hint="choose a smaller context") from error
        # llama.cpp rounds it up to a multiple of 256, for which the arrays of `Llama` have no room
        self.context = self._n_ctx = context
        self._texts = LlamaTexts(self.model)
        self._more_ends = self._texts.more_ends()
        self.switch({})

    def __setattr__(self, name: str, value: Any) -> None:
        """Settings that `Llama` has not, each put in when its constructor has come to it."""
        if name == "model_params":
            value.use_extra_bufts = extra_buffers_are_safe()
        super().__setattr__(name, value)
        if name == "_model":  # the context comes next
            self._adapters.load(value.model)
            self.context_params.flash_attn_type = bindings().LLAMA_FLASH_ATTN_TYPE_AUTO

    def switch(self, scales: Mapping[str, float]) -> None:
        """Use these adapters and no others. What other adapters have computed is forgotten."""
        wanted = tuple(scales.get(name, 0.0) for name in self._names)
        if wanted != self._scales:
            self._adapters.scale(self.ctx, wanted)
            self._scales = wanted
            self._forget()

    def stop(self) -> None:
        """End the answer that is being generated, and all later ones."""
        self._stopped.set()

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text of a conversation up to the start of the answer, with one first token."""
        text = self._texts.chat_prompt([_plain(message) for message in messages])
        if (bos := self._texts.bos) is None:
            return text
        first = self._texts.control_text(bos)
        if bos not in self.tokenize(text.encode(), add_bos=False, special=True):
            return first + text
        while text.startswith(2 * first):
            text = text.removeprefix(first)
        return text

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """See `Llama.tokenize`. A text that would end the process is refused."""
        self._encodable.check(text.decode("utf-8", "replace"))
        found: list[int] = super().tokenize(text, add_bos, special)
        return found

    def detokenize(self, tokens: list[int], *args: Any, **more: Any) -> bytes:
        """See `Llama.detokenize`. Bytes that are no text are U+FFFD, as in `edgepack chat`, unless
        the next token may complete them: a stream would wait for them until its end."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(super().detokenize(tokens, *args, **more))
        return text.encode() + decoder.getstate()[0]

    def check_grammar(self, text: str) -> None:
        """Refuse a grammar that llama.cpp cannot read, with which `Llama` would end the process."""
        lib = bindings()
        vocabulary = lib.llama_model_get_vocab(self.model)
        sampler = lib.llama_sampler_init_grammar(vocabulary, text.encode(), b"root")
        if not sampler:
            raise EdgepackError("llama.cpp cannot read the grammar", hint="its rules are in GBNF")
        lib.llama_sampler_free(sampler)

    def create_completion(
        self, *args: Any, logprobs: int | None = None, grammar: Any = None, **more: Any
    ) -> Any:
        """See `Llama.create_completion`. Logits of all positions are kept only if they are asked
        for, since they take more memory and time than the rest."""
        if grammar is not None:  # not only a request's: some are made of JSON schemas
            self.check_grammar(grammar._grammar)
        self._logits_all = logprobs is not None
        if self._logits_all:
            self._forget()  # no logits are kept of tokens that it would take from the cache
            if len(self.scores) < self._n_ctx:
                self.scores: NDArray[np.single] = np.empty((self._n_ctx, self._n_vocab), np.single)
        return super().create_completion(*args, logprobs=logprobs, grammar=grammar, **more)

    def generate(self, *args: Any, **more: Any) -> Iterator[int]:
        """See `Llama.generate`. It ends at every token that ends an answer, and at `stop`."""
        end = self.token_eos()  # at which `Llama` ends an answer
        for token in super().generate(*args, **more):
            ends = token in self._more_ends or self._stopped.is_set()
            if ends and end < 0:  # a model without one
                return
            yield end if ends else token

    def _forget(self) -> None:
        lib = bindings()
        lib.llama_memory_clear(lib.llama_get_memory(self.ctx), True)
        self.reset()

    def _format(self, *, messages: Sequence[Mapping[str, Any]], **_: Any) -> Any:
        return Prompt(prompt=self.prompt(messages), added_special=True)


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose content is text, in one part or several."""
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    if any(part.get("type") != "text" for part in content):
        raise EdgepackError("a message has content that is no text", hint="send text only")
    return {**message, "content": "".join(part["text"] for part in content)}
