"""The library of llama.cpp's C functions: loaded once, its log kept, its failures explained."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from edgepack.core.untrusted import shorten
from edgepack.errors import EdgepackError, missing_extra

_ERROR_LEVEL = 4  # enum ggml_log_level
_PREFIX = re.compile(r"^\w+: ((error loading model|failed to apply lora adapter): )?(\w+: )?")

_errors: deque[str] = deque(maxlen=8)
"""llama.cpp's last error lines; global, because llama.cpp has one log per process."""


@cache
def bindings() -> Any:
    """The module of C functions; its log does not reach the terminal."""
    try:
        from llama_cpp import llama_cpp as lib
    except ImportError as error:
        raise missing_extra("llama-cpp-python", "llama") from error

    @lib.llama_log_callback  # type: ignore[untyped-decorator]
    def log(level: int, line: bytes, _data: object) -> None:
        if level == _ERROR_LEVEL:
            _errors.append(line.decode("utf-8", "replace").strip())

    lib.llama_log_set(log, None)
    lib.edgepack_log = log  # C keeps a bare pointer: the module keeps the object alive
    lib.llama_backend_init()
    return lib


@cache
def extra_buffers_are_safe() -> bool:
    """Whether weights may be repacked for the CPU's own matrix instructions.

    llama.cpp uses AMX wherever the CPU advertises it. Where the kernel (or the sandbox) forbids it,
    the process dies with SIGILL at the first product. There is no way to find out, so AMX is off.
    """
    cpu = Path("/proc/cpuinfo")
    return not (cpu.exists() and "amx_tile" in cpu.read_text())


def checked(failure: str, call: Callable[[], Any]) -> Any:
    """The call's result; if there is none, an error with llama.cpp's reason."""
    _errors.clear()
    if result := call():
        return result
    # the first line is the cause; later ones only say where it was noticed
    reason = shorten(_PREFIX.sub("", _errors[0]), 120) if _errors else "no reason given"
    raise EdgepackError(
        f"{failure}: {reason}",
        hint="the file is damaged, or of a kind that this llama.cpp does not run; copy it again",
    )
