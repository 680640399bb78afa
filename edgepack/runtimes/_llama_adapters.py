"""The GGUF adapters of a model that llama.cpp has loaded, and their scales."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.core.untrusted import shorten
from edgepack.runtimes._llama_library import bindings, checked
from edgepack.runtimes.base import check_scales
from edgepack.runtimes.gguf_check import check_adapter, factors_scale


class LlamaAdapters:
    """The factors of a model, if they lie apart, and a user's adapters."""

    def __init__(self, model: GgufHeader, factors: Path | None, adapters: Sequence[Path]) -> None:
        self._paths = [*([factors] if factors else []), *adapters]
        self._fixed = len(self._paths) - len(adapters)
        self._headers = [check_adapter(path, model) for path in self._paths][self._fixed :]
        self._loaded: list[Any] = []

    def load(self, model: Any) -> None:
        """Load them; they are freed with the model. To be called before a context is made, whose
        buffers then have room for all of them."""
        load = bindings().llama_adapter_lora_init
        for path in self._paths:
            what = f"cannot use the adapter {shorten(str(path), 120)}"
            self._loaded.append(checked(what, lambda: load(model, os.fsencode(path))))  # noqa: B023

    def scale(self, context: Any, scales: Sequence[float]) -> None:
        """Give the user's adapters scales in a context, whose keys and values fit no longer. With
        one that holds the factors at scale 1, there are as many products as without it."""
        check_scales(scales, len(self._headers))
        factors = factors_scale(zip(self._headers, scales, strict=True))
        every = zip(self._loaded, [factors] * self._fixed + list(scales), strict=True)
        used = [(lora, scale) for lora, scale in every if scale]
        lib = bindings()
        adapters = (lib.llama_adapter_lora_p_ctypes * len(used))(*(lora for lora, _ in used))
        values = (ctypes.c_float * len(used))(*(scale for _, scale in used))
        checked(
            "cannot use the adapters",
            lambda: lib.llama_set_adapters_lora(context, adapters, len(used), values) == 0,
        )
