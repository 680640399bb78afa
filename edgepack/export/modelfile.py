"""The Modelfile with which ``ollama create`` imports an exported folder."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack.checkpoint import Checkpoint, special
from edgepack.core.untrusted import shorten
from edgepack.export.programs import FOLD, NO_ADAPTERS_SINCE

LONGEST_STOP = 100
"""Most characters of a stop; a special token has a few."""


def modelfile(
    base: str = "base.gguf", factors: str | None = "factors.gguf", stops: Sequence[str] = ()
) -> str:
    """Text of a Modelfile beside the files that it names; no ADAPTER line without factors.

    There is no TEMPLATE, because Ollama reads the chat template and the tokens that end a turn from
    the metadata of `base`. `stops` are texts of further tokens that end a turn.
    """
    lines = [f"FROM ./{base}"]
    if factors is not None:
        lines += [f"# Ollama {NO_ADAPTERS_SINCE} and newer refuse the next line; {FOLD}."]
        lines += [f"ADAPTER ./{factors}"]
    return "\n".join([*lines, *map(_parameter, stops)]) + "\n"


def _parameter(stop: str) -> str:
    """A stop parameter; Ollama has no escapes, but triple quotation marks."""
    marks = '"""' if '"' in stop or "\n" in stop else '"'
    return f"PARAMETER stop {marks}{stop}{marks}"


def stops(checkpoint: Checkpoint) -> list[str]:
    """The texts of the tokens that end an answer, if there are several. `base` names up to three,
    but some programs read only the first."""
    tokenizer = checkpoint.tokenizer
    ends = special.ends(tokenizer, checkpoint.generation_config())
    if len(ends) < 2:
        return []
    known = tokenizer.added_tokens_decoder
    texts = (known[end].content if end in known else str(tokenizer.decode([end])) for end in ends)
    return [text for text in texts if _can_stop(text)]


def _can_stop(text: str) -> bool:
    """Whether a text can be written in a Modelfile, and is more than spaces or line ends."""
    return bool(text.strip()) and shorten(text, LONGEST_STOP) == text and '"""' not in text
