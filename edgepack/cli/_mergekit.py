"""Habits of mergekit's command lines: options that it has and edgepack does not need, or has not.

They are accepted, and a line says what becomes of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgepack.core.untrusted import quote
from edgepack.errors import RecipeError

DEFAULT, NEVER, OURS = "is on by default", "does not exist here", "is not needed"
ON_CPU = f"{NEVER}: the work is bound by the disk, and done on the CPU"
FLAGS = {
    "--copy-tokenizer": f"{DEFAULT}: the tokenizer is always written",
    "--lazy-unpickle": f"{DEFAULT}: one tensor is in memory at a time",
    "--low-cpu-memory": f"{DEFAULT}: one tensor is in memory at a time",
    "--write-model-card": f"{DEFAULT}: README.md has the recipe and the sources",
    "--safe-serialization": f"{DEFAULT}: only safetensors are written",
    "--async-write": f"{DEFAULT}: reading, merging and writing overlap",
    "--lazy": f"{DEFAULT}: results of the same merge of the same models are kept",
    "--clone-tensors": f"{OURS}: a layer may occur several times",
    "--allow-crimes": f"{NEVER}: models of different families are refused",
    "--unsafe-truncate-embeddings": f"{NEVER}: tokenizer_source says which tokens are kept",
    "--trust-remote-code": f"{NEVER}: no code that comes with a model is run",
    "--cuda": ON_CPU,
    "--read-to-gpu": ON_CPU,
    "--multi-gpu": ON_CPU,
    "--gpu-rich": ON_CPU,
    "--quiet": f"{NEVER}: 2>/dev/null leaves out the progress",
    "-v": f"{NEVER}: --debug before the command shows the traceback of an error",
}
"""mergekit's options without a value, and what becomes of them; each also with ``--no-``."""
VALUES = {
    "--lora-merge-cache": f"{OURS}: adapters are added as tensors are read",
    "--lora-merge-dtype": f"{OURS}: adapters are added in float32",
    "--transformers-cache": f"{NEVER}: HF_HOME says where models from the hub are kept",
    "--intermediate-dir": f"{OURS}: intermediate results are in edgepack's cache",
    "-I": f"{OURS}: intermediate results are in edgepack's cache",
    "--device": ON_CPU,
    "--num-threads": f"{OURS}: there is a thread for each core, up to 4",
    "-j": f"{OURS}: there is a thread for each core, up to 4",
    "--write-threads": f"{OURS}: there is a thread for each core, up to 4",
}
"""mergekit's options with a value."""


def foreign(
    arguments: Sequence[str],
    own: Sequence[str],
    flags: Mapping[str, str] = FLAGS,
    values: Mapping[str, str] = VALUES,
) -> tuple[list[str], list[str]]:
    """What is to be said of the options among `arguments`, and the arguments that are none; an
    error for options that nobody knows. `own` are edgepack's of this command, for "did you
    mean"."""
    lines, names = list[str](), list[str]()
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith("-"):
            names.append(argument)
            continue
        name, _, value = argument.partition("=")
        if set(name) == {"-", "v"}:  # the more, the more mergekit says
            name = "-v"
        plain = name.replace("--no-", "--", 1)
        if name in values:
            if not value and waiting:
                waiting.pop(0)
            lines.append(f"{name}: {values[name]}")
        elif plain in flags:
            what = flags[plain]
            if plain != name:  # what is on cannot be turned off, what does not exist is off
                what = "cannot be turned off" if what.startswith(DEFAULT) else "is so here"
            lines.append(f"{name}: {what}")
        else:
            from edgepack.core.plugins import suggest

            raise RecipeError(
                f"there is no option {name}", hint=suggest(name, (*own, *flags, *values))
            )
    return lines, names


def check_count(names: Sequence[str], most: int, hint: str) -> None:
    """Refuse more arguments than a command has."""
    if len(names) > most:
        raise RecipeError(f"{quote(names[most])}: is one name too many", hint=hint)
