"""Modelfiles as Ollama reads them: the grammar of docs/modelfile.mdx in ollama/ollama, and of
quotation marks what its parser/parser.go does, up to 0.33. Stricter than that: what Ollama reads
without a word although it makes no sense is an error.
"""

from __future__ import annotations

COMMANDS = ("from", "adapter", "parameter", "template", "system", "license", "message", "requires")


def parse(text: str) -> list[tuple[str, ...]]:
    """(command, value), or ("parameter", name, value), in order. `ValueError` for what Ollama would
    refuse, or would read without saying that it makes no sense."""
    found: list[tuple[str, ...]] = []
    while text := text.lstrip(" \t\r\n"):
        if text.startswith("#"):
            text = text.partition("\n")[2]
            continue
        command, text = _word(text)
        if command.lower() not in COMMANDS:
            raise ValueError(f"no command: {command!r}")
        names = []
        if command.lower() in ("parameter", "message"):
            name, text = _word(text)
            names.append(name)
        value, text = _value(text)
        found.append((command.lower(), *names, value))
    if not any(command[0] == "from" for command in found):
        raise ValueError("no FROM line")
    return found


def _word(text: str) -> tuple[str, str]:
    """A word of letters, digits and underscores, and what follows the spaces after it."""
    end = next(
        (i for i, c in enumerate(text) if not (c.isascii() and (c.isalnum() or c == "_"))), 0
    )
    if not end or text[end] not in " \t":
        raise ValueError(f"no word: {text[:20]!r}")
    return text[:end], text[end:].lstrip(" \t")


def _value(text: str) -> tuple[str, str]:
    """A value, which ends with the first line at whose end its quotation marks are closed."""
    end = 0
    while end < len(text):
        end = next((i for i in range(end + 1, len(text)) if text[i] in "\r\n"), len(text))
        value = _unquoted(text[:end].strip())
        if value is not None:
            return _printable(value), text[end:]
    raise ValueError(f"quotation marks are open: {text[:20]!r}")


def _unquoted(text: str) -> str | None:
    for marks in ('"""', '"'):
        if text.startswith(marks):
            closed = len(text) >= 2 * len(marks) and text.endswith(marks)
            return text[len(marks) : -len(marks)] if closed else None
    if not text:
        raise ValueError("a value is missing")
    return text


def _printable(value: str) -> str:
    if not all(c.isprintable() or c in "\r\n\t" for c in value):
        raise ValueError(f"Ollama drops characters that cannot be printed: {value!r}")
    return value
