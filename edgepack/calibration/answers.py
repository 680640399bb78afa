"""Where the answers are in rendered conversations: the tokens that a model is for.

A question is what people write. What a model was tuned for is the answer, so that only the
gradients of its tokens say which weights the skill needs (`merge.weighted`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ASSISTANT = "assistant"
Span = tuple[int, int]
"""First character of an answer, and the one after its last."""


def spans(
    messages: Sequence[Any], text: str, render: Callable[[Sequence[Any], bool], str]
) -> list[Span]:
    """The answers in `text`, which is the whole conversation; the marker after an answer belongs to
    it. `render` makes the text of some messages, with the start of an answer if asked to. All of
    the text where the template shows the parts otherwise than the whole, or nobody answers."""
    found = []
    for index, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        before = render(messages[:index], True)
        upto = render(messages[: index + 1], False).rstrip()
        if not (text.startswith(upto) and upto.startswith(before)):
            return [(0, len(text))]
        found.append((len(before), len(upto)))
    return found or [(0, len(text))]


def encode(
    tokenizer: PreTrainedTokenizerFast, text: str, answers: Sequence[Span]
) -> tuple[list[int], Tensor]:
    """Token ids of a text, and bool ``[n]``: which of them begin in an answer."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = torch.tensor([start for start, _ in encoded["offset_mapping"]], dtype=torch.int64)
    inside = torch.zeros(len(starts), dtype=torch.bool)
    for first, end in answers:
        inside |= (starts >= first) & (starts < end)
    return list(encoded["input_ids"]), inside


def labels(inside: Tensor) -> Tensor:
    """Positions whose next token is one of an answer, for tokens in a row ``[n]``."""
    return torch.cat([inside[1:], inside.new_zeros(1)])
