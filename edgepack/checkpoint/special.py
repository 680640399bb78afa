"""Special tokens: those put around every text, those that end an answer, those in templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from edgepack.checkpoint import templates
from edgepack.checkpoint.templates import TemplateError
from edgepack.core.untrusted import quote, whole_number
from edgepack.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

QUESTION, ANSWER = "\x01QUESTION\x01", "\x01ANSWER\x01"
"""Markers in place of the messages' texts; no template has a reason to change them."""
EOS = "eos_token_id"

GGUF_ENDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
"""Keys of ids at which llama.cpp ends an answer, beside the tokens that it knows by name …"""
MORE_ENDS = "edgepack.eos_token_ids"
"""… and edgepack's key for all further ids, separated by spaces."""


class Turns(NamedTuple):
    """The text that a chat template puts around a question and its answer."""

    before: str
    between: str
    after: str


def wrapping(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after every text."""
    bare = tokenizer.encode("a", add_special_tokens=False)
    full = tokenizer.encode("a", add_special_tokens=True)
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise CheckpointError(
        f"the tokenizer's post-processor makes {full[:8]} of {bare[:8]}, the tokens of 'a'",
        hint="it may only add tokens before and after a text",
    )


def ends(tokenizer: PreTrainedTokenizerFast, *configs: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end an answer: those that `configs` (generation_config.json, config.json) list,
    the tokenizer's EOS, and the token by which the chat template closes an answer."""
    found = [token for config in configs for token in listed_ends(config)]
    if tokenizer.eos_token_id is not None:
        found.append(tokenizer.eos_token_id)
    closing = _closing(tokenizer)
    return tuple(dict.fromkeys([*found, *([] if closing is None else [closing])]))


def listed_ends(config: Mapping[str, Any]) -> list[int]:
    """The ids under ``eos_token_id``: a number, a list of numbers, or nothing."""
    value = config.get(EOS)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for index in ids:
        if not isinstance(index, int) or isinstance(index, bool):
            raise CheckpointError(
                f"{EOS}: should be a number or a list of numbers, not {quote(value)}",
                hint="correct it in generation_config.json and config.json",
            )
    return [index for index in ids if 0 <= index < 1 << 31]  # −1 means none


def with_ends(generation: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json with the ids that only config.json lists."""
    ids = list(dict.fromkeys([*listed_ends(generation), *listed_ends(config)]))
    if not isinstance(config.get(EOS), list) or ids == listed_ends(generation):
        return dict(generation)
    return {**generation, EOS: ids}


def gguf_ends(fields: Mapping[str, Any]) -> list[int]:
    """The ids that end an answer according to the keys of a GGUF file."""
    ids = [fields[key] for key in GGUF_ENDS if isinstance(fields.get(key), int)]
    more = map(whole_number, str(fields.get(MORE_ENDS, "")).split())
    return list(dict.fromkeys([*ids, *(index for index in more if index is not None)]))


def names_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """The special tokens' texts, by the names that chat templates use (``bos_token``, …)."""
    return {
        name: str(text)
        for name, text in tokenizer.special_tokens_map.items()
        if isinstance(text, str)
    }


def turns(tokenizer: PreTrainedTokenizerFast) -> Turns | None:
    """The text that the chat template puts around a question and an answer; None without one.

    `TemplateError` if the template refuses the messages or changes their text.
    """
    template = tokenizer.chat_template
    known = _turns.get(tokenizer)
    if known is None or known[0] != template:
        try:
            known = template, _render_turns(tokenizer)
        except TemplateError as error:
            known = template, error
        _turns[tokenizer] = known
    found = known[1]
    if isinstance(found, TemplateError):
        raise TemplateError(found.message, hint=found.hint, refused=found.refused)
    return found


_turns: WeakKeyDictionary[PreTrainedTokenizerFast, tuple[Any, Turns | TemplateError | None]] = (
    WeakKeyDictionary()
)
"""Template → result, so that each template is rendered only once."""


def _render_turns(tokenizer: PreTrainedTokenizerFast) -> Turns | None:
    if templates.choose(tokenizer.chat_template) is None:
        return None
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    text = templates.render(tokenizer.chat_template, messages, names_of(tokenizer))
    before, question, rest = text.partition(QUESTION)
    between, answer, after = rest.partition(ANSWER)
    if not (question and answer):
        raise TemplateError(
            "the chat template changes or leaves out what is said",
            hint="take the chat template published with the model",
        )
    return Turns(before, between, after)


def _closing(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The special token that the template puts after an answer, if any."""
    try:
        found = turns(tokenizer)
    except TemplateError:
        return None
    if found is None:
        return None
    ids = tokenizer.encode(found.after.lstrip(), add_special_tokens=False)[:1]
    added = tokenizer.added_tokens_decoder
    return ids[0] if ids and ids[0] in added and added[ids[0]].special else None
