"""The text of a recipe: what was chosen, and above every choice the figures that it came from."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import yaml

from edgepack.calibration.text import counts
from edgepack.checkpoint import Checkpoint
from edgepack.core.tables import format_size
from edgepack.core.untrusted import shorten
from edgepack.init.choose import Choice
from edgepack.planning.device import times
from edgepack.recipe.calibrate import Calibrate

WIDTH = 99
MEASURED, CHUNK, SHORTEST = 6144, 512, 64
"""Tokens that the files are measured on, of a chunk, and the least that a recipe takes for it."""


def recipe_text(model: Checkpoint, name: str, choice: Choice, file: str) -> str:
    """The recipe for a model that the recipe calls `name`, to be written to `file`."""
    parts = [_head(model, choice, file), _model(model, name)]
    if choice.format is None:
        parts += [_calibrate(model), _budget(choice)]
    else:
        parts.append(_fixed(model, choice))
    return "\n".join([*parts, _export(model, choice)])


def amount(count: int) -> str:
    """Bytes as a recipe says them, rounded down to four digits."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            digits = 3 - len(str(count // size)) + 1
            return f"{count // 10 ** (len(str(size)) - 1 - digits) / 10**digits:g}{unit}"
    return str(count)


def _comment(text: str, indent: int = 0) -> list[str]:
    start = " " * indent + "# "
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=start,
        subsequent_indent=start,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _lines(*lines: str | Sequence[str]) -> str:
    flat = [one for line in lines for one in ([line] if isinstance(line, str) else line)]
    return "\n".join(flat) + "\n"


def _value(value: object) -> str:
    """A value in YAML, on one line."""
    text = yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, width=10**6)
    return str(text).removesuffix("\n").removesuffix("\n...")


def _head(model: Checkpoint, choice: Choice, file: str) -> str:
    device, needs, kind = choice.device, choice.needs, choice.target
    room = "for the files"
    if kind.copies > 1:
        room = f"for {kind.copies} × the files: {kind.through} copies the weights as it loads them"
    left = device.usable - needs.cache - needs.runtime
    return _lines(
        _comment(
            f"{shorten(str(model.source['model']), 80)} for {device.name}: {device.title}. "
            "Written by edgepack init; all of it may be changed."
        ),
        "#",
        f"#     edgepack plan {file} --target {kind.name}",
        f"#     edgepack build {file} --target {kind.name}",
        "#",
        "# Memory:",
        _figure("", device.usable, f"that an app may use ({device.source})"),
        _figure("−", needs.cache, f"for {needs.context:,} tokens of context: {needs.how}"),
        _figure("−", needs.runtime, "for the runtime: the program, and its buffers"),
        _figure("=", left, room),
        *_context(model, choice),
    )


def _context(model: Checkpoint, choice: Choice) -> list[Sequence[str]]:
    """Why the context is shorter than the device's, if it is."""
    wished, most = choice.device.context, model.dimensions.max_position_embeddings
    if choice.needs.context >= min(wished, most):
        return []
    return [_comment(f"{min(wished, most):,} tokens are usual there; with fewer, the model fits.")]


def _figure(sign: str, count: int, what: str) -> str:
    return f"# {sign:>3} {format_size(count):>8}  {what}"


def _model(model: Checkpoint, name: str) -> str:
    d = model.dimensions
    weights = sum(spec.numel for spec in model.specs.values())
    tied = "; the head is the embeddings" if d.tie_word_embeddings else ""
    about = (
        f"{model.architecture.name}: {weights / 1e6:,.1f} M weights, {d.num_hidden_layers} blocks "
        f"of {d.hidden_size:,} columns, {d.vocab_size:,} tokens{tied}."
    )
    return _lines(_comment(about), f"model: {_value(name)}")


def _calibrate(model: Checkpoint) -> str:
    d = model.dimensions
    options = Calibrate()
    widest = max(d.hidden_size, d.intermediate_size)
    train, _ = counts(options, d)
    return _lines(
        "calibrate:",
        _comment(
            "The model writes its own text: nothing to download, no licence to mind. A .txt, or a "
            ".jsonl of chats, is better where you have one like what the model is for.",
            2,
        ),
        "  source: self",
        _comment(f"32 for each of the {widest:,} columns of the widest weight; the default.", 2),
        f"  tokens: {train * options.sequence_length}",
    )


def _budget(choice: Choice) -> str:
    device = choice.device
    size = (
        f"{choice.bits:.2f} bits per weight: all that fits."
        if choice.is_all
        else f"{choice.bits:.2f} bits per weight. {format_size(choice.room)} would fit, but every "
        "token reads all of the file: more bits would make it slower."
    )
    formats = f"Fast on {device.name}: {choice.kernels.why}. The build measures what each costs "
    formats += "every weight, and spends the size where it counts."
    return _lines(
        "compress:",
        _comment(size, 2),
        f"  target_size: {amount(choice.size)}",
        _comment(formats, 2),
        *(_comment(line, 2) for line in _remarks(choice)),
        f"  candidates: {_value(list(choice.candidates))}",
        _comment(
            "No factors L·R: as compression they pay less than larger codes, and cost speed. "
            "[0, 32] tries them.",
            2,
        ),
        "  ranks: [0]",
    )


def _remarks(choice: Choice) -> list[str]:
    """What is to be said of formats that are there, or are not."""
    found = []
    if choice.small:
        names = ", ".join(choice.small)
        found.append(f"{names} may be slower; without them the model does not fit.")
    if choice.unfit:
        names = ", ".join(choice.unfit)
        found.append(f"Left out: {names}, whose blocks fit no width of this model.")
    if choice.slow:
        words = ", ".join(f"{name} ({times(found)})" for name, found in choice.slow.items())
        found.append(f"Slow on this device: {words}.")
    return found


def _fixed(model: Checkpoint, choice: Choice) -> str:
    why = f"{format_size(choice.size)}. {choice.kernels.why}."
    if choice.format not in choice.kernels.fast:
        why = (
            f"{format_size(choice.size)}. A scale for each row, which needs no calibration: "
            f"{model.architecture.name} models do not write their own text here. With a text "
            "(calibrate: {source: FILE}) smaller formats are possible: "
            + ", ".join(choice.kernels.fast)
            + "."
        )
    return _lines(
        "compress:",
        _comment(why, 2),
        f"  format: {choice.format}",
        f"  embeddings: {choice.format}",
    )


def _export(model: Checkpoint, choice: Choice) -> str:
    lines: list[str | Sequence[str]] = ["export:"]
    if choice.target.name == "onnx":
        lines += [
            "  onnx:",
            f"    profile: {choice.kernels.profile}",
            _comment(f"Of the model's {model.dimensions.max_position_embeddings:,}.", 4),
            f"    context: {choice.needs.context}",
        ]
    lines.append("  measure:")
    if choice.format is not None:
        text = "Nothing is calibrated, so there is no text to measure on; name one in `text`."
        return _lines(*lines, _comment(text, 4), "    tokens: 0")
    what = (
        "Mean KL to the original, perplexity and the share of equal top tokens, on text that was "
        f"held out, through {choice.target.through}; beside files of others of the same size."
    )
    lines += [_comment(what, 4), f"    tokens: {MEASURED}"]
    chunk = min(CHUNK, model.dimensions.max_position_embeddings)
    if chunk >= SHORTEST:
        lines.append(f"    context: {chunk}")
    return _lines(*lines)
