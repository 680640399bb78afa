"""The file with which ``ollama create`` takes an exported folder."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack.checkpoint import Checkpoint, special
from edgepack.core.untrusted import shorten

LONGEST_STOP = 100
"""Characters; a special token is a few."""


def modelfile(
    base: str = "base.gguf", factors: str | None = "factors.gguf", stops: Sequence[str] = ()
) -> str:
    """Text of a Modelfile beside the files it names; no ADAPTER line without factors.

    There is no TEMPLATE: Ollama reads the chat template and the tokens that end a turn from the
    metadata of `base`. `stops` are texts of tokens that end a turn too.
    """
    lines = [f"FROM ./{base}"]
    if factors is not None:
        lines.append(f"ADAPTER ./{factors}")
    return "\n".join([*lines, *map(_parameter, stops)]) + "\n"


def _parameter(stop: str) -> str:
    """A stop parameter; Ollama knows no escapes, but quotation marks by three."""
    marks = '"""' if '"' in stop or "\n" in stop else '"'
    return f"PARAMETER stop {marks}{stop}{marks}"


def stops(checkpoint: Checkpoint) -> list[str]:
    """The texts of the tokens that end an answer, where there are several: `base` names up to
    three, of which some programs read the first only."""
    tokenizer = checkpoint.tokenizer
    ends = special.ends(tokenizer, checkpoint.generation_config())
    if len(ends) < 2:
        return []
    known = tokenizer.added_tokens_decoder
    texts = (known[end].content if end in known else str(tokenizer.decode([end])) for end in ends)
    return [text for text in texts if _can_stop(text)]


def _can_stop(text: str) -> bool:
    """Whether a text can stand in a Modelfile and says more than a space or a line end."""
    return bool(text.strip()) and shorten(text, LONGEST_STOP) == text and '"""' not in text
