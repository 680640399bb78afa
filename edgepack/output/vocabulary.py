"""The tokenizer of a result, as its files have it: what the manifest notes of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.core.untrusted import read_json
from edgepack.errors import EdgepackError

GGUF, JSON = "base.gguf", "tokenizer.json"
KEYS, TOKENS, TEMPLATE = "tokenizer.", "tokenizer.ggml.tokens", "tokenizer.chat_template"
TEMPLATE_FILE = "chat_template.jinja"


def describe(folder: Path, files: Iterable[str]) -> dict[str, Any] | None:
    """How many `tokens` the result in `folder` has, sha256 of the `vocabulary` with all that
    belongs to it, and of the `chat_template`; None for files without a tokenizer that is known."""
    names = set(files)
    if GGUF in names:
        return _of_gguf(GgufHeader(folder / GGUF))
    if JSON not in names:
        return None
    content = read_json(folder / JSON)
    try:
        tokens = len({*content["model"]["vocab"]} | {t["content"] for t in content["added_tokens"]})
    except (LookupError, TypeError):  # vocabularies of other kinds are lists of pairs
        tokens = len(content["model"]["vocab"]) if isinstance(content, dict) else 0
    return _described(tokens, content, _template(folder, names))


def _of_gguf(header: GgufHeader) -> dict[str, Any]:
    own = {key: entry[0] for key, entry in header.metadata.items() if key.startswith(KEYS)}
    template = own.pop(TEMPLATE, None)
    return _described(len(own.get(TOKENS, ())), own, template)


def _template(folder: Path, names: set[str]) -> str | None:
    if TEMPLATE_FILE not in names:
        return None
    try:
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    except OSError as error:
        raise EdgepackError(f"{TEMPLATE_FILE}: cannot be read ({error.strerror})") from None


def _described(tokens: int, vocabulary: Any, template: Any) -> dict[str, Any]:
    text = json.dumps(vocabulary, sort_keys=True, ensure_ascii=False)
    return {
        "tokens": tokens,
        "vocabulary": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        "chat_template": None
        if template is None
        else hashlib.sha256(str(template).encode("utf-8", "surrogatepass")).hexdigest(),
    }
