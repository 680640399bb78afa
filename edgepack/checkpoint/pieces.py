"""The bytes of a vocabulary's tokens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edgepack.checkpoint import probes
from edgepack.checkpoint.tokenizer import SPACE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + i): byte for i, byte in enumerate(sorted(set(range(256)) - set(_PRINTABLE)))
}
"""Character → byte in byte-level vocabularies (GPT-2)."""
BYTE = re.compile("<0x([0-9A-F]{2})>")
UNUSED = re.compile(r"[<\[]\S*(unused|reserved|extra_id|pad)\S*[>\]]", re.IGNORECASE)
"""Names of tokens that occur in no training text."""


class Pieces:
    """The bytes of every token."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        backend = probes.backend_of(tokenizer)
        kinds = {
            step["type"]
            for part in ("pre_tokenizer", "decoder")
            for step in probes.steps(backend.get(part))
        }
        self._byte_level = "ByteLevel" in kinds and not backend["model"].get("byte_fallback")
        self._added = tokenizer.added_tokens_decoder
        self._names = {index: token for token, index in tokenizer.get_vocab().items()}

    def bytes_of(self, index: int) -> bytes:
        """The bytes that a token adds to a text; for an added token, its content."""
        name = self._names.get(index, "")
        if index in self._added:
            return name.replace(SPACE, " ").encode() if not self._byte_level else name.encode()
        if self._byte_level:
            if all(character in BYTE_OF for character in name):
                return bytes(BYTE_OF[character] for character in name)
            return name.encode()
        if found := BYTE.fullmatch(name):
            return bytes.fromhex(found[1])
        return name.replace(SPACE, " ").encode()

    def openings(self, rows: int) -> list[int]:
        """Tokens that a text may begin with: text of any script, with or without a leading space.
        Added and unused tokens, bytes, and parts of characters or of words are left out."""
        return [index for index in sorted(self._names) if index < rows and self._opens(index)]

    def _opens(self, index: int) -> bool:
        name = self._names[index]
        if index in self._added or BYTE.fullmatch(name) or UNUSED.fullmatch(name):
            return False
        text = self.bytes_of(index).decode(errors="replace").strip()
        return text.isprintable() and bool(text) and "\ufffd" not in text and text[:2] != "##"
