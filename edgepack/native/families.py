"""The families that edgepack-tune trains, from the lines that its C++ is compiled from."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepack.architectures.base import Architecture

LINES = Path(__file__).with_name("tune") / "families.h"
LINE = re.compile(r'^FAMILY\("(\w[\w.-]*)", \w+\)$', re.MULTILINE)


@cache
def trained() -> tuple[str, ...]:
    """GGUF's names of the architectures that edgepack-tune trains."""
    return tuple(LINE.findall(LINES.read_text(encoding="utf-8")))


def why_not(family: Architecture) -> str | None:
    """Why edgepack-tune cannot train models of a family; None if it can."""
    if family.gguf in trained():
        return None
    return f"edgepack-tune trains {', '.join(trained())}; `edgepack finetune` trains the others"
