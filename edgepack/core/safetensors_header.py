"""The same bytes for the same tensors: safetensors writes the texts of its header in the order of a
hash map, which is another one in every process."""

from __future__ import annotations

import json
from pathlib import Path

TEXTS = "__metadata__"


def sort_texts(path: Path) -> None:
    """Put the texts in the header of a safetensors file in the order of their names. The header
    keeps its length, and the tensors stay where they are."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        if len(header.get(TEXTS, ())) < 2:
            return
        header[TEXTS] = dict(sorted(header[TEXTS].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > size:  # another way to write JSON than that of this version
            raise ValueError(f"{path.name}: the header would grow from {size} to {len(text)} bytes")
        file.seek(8)
        file.write(text.ljust(size))
