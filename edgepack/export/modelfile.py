"""The file with which ``ollama create`` takes an exported folder."""

from __future__ import annotations


def modelfile(base: str = "base.gguf", factors: str | None = "factors.gguf") -> str:
    """Text of a Modelfile beside the files it names; no ADAPTER line without factors.

    There is no TEMPLATE and no stop parameter: Ollama reads the chat template and the tokens that
    end a turn from the metadata of `base`.
    """
    lines = [f"FROM ./{base}"]
    if factors is not None:
        lines.append(f"ADAPTER ./{factors}")
    return "\n".join(lines) + "\n"
