"""The model writes its own calibration text, so that none has to be downloaded or licensed.

Half of the sequences begin as documents, with a random token of the vocabulary (LLM-QAT, Liu et
al., arXiv 2305.17888). The others, and the text after the end of a document, are chats: the
template's opening is given, and the model writes both sides (Magpie, Xu et al., arXiv 2406.08464).
Where a model has no chat template, all are documents. Sampling is at temperature 1, without the
tokens less than a twentieth as likely as the likeliest (min-p, Nguyen et al., arXiv 2407.01082),
because pure sampling of a small model soon drifts into noise.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgepack.calibration.sampling import sample
from edgepack.checkpoint import special
from edgepack.checkpoint.pieces import Pieces
from edgepack.checkpoint.templates import TemplateError
from edgepack.core.progress import Progress, Steps
from edgepack.errors import CalibrationError
from edgepack.model.block import Block
from edgepack.model.decoder import Decoder, fits_in_memory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CACHE_BYTES = 3 << 29  # keys and values of one batch
_MIN_P = 0.05


@dataclass
class Sequence:
    """A text being written: forced tokens first, then the model's; turn −1 is a document."""

    scripts: list[list[int]]
    turn: int
    forced: deque[int] = field(default_factory=deque)

    def next_turn(self, start: int) -> None:
        """Begin a document with token `start`, or continue with the next turn of a chat."""
        script = self.scripts[self.turn % len(self.scripts)] if self.turn >= 0 else []
        self.forced.extend(script or [start])
        self.turn += 1


def chat_script(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Token ids that the chat template puts before a question and before an answer. Empty for a
    model without a usable template, which then writes documents only."""
    try:
        found = special.turns(tokenizer)
    except TemplateError:  # `template_warnings` reports it
        found = None
    if found is None:
        return [[]]
    parts = (found.before, found.between)
    return [tokenizer.encode(part, add_special_tokens=False) for part in parts]


def template_warnings(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """A warning that the text is documents only, if the model's chat template cannot be used."""
    try:
        special.turns(tokenizer)
    except TemplateError as error:
        return [f"calibrate.source: self writes documents only, no chats: {error}"]
    return []


def batches(decoder: Decoder, count: int, length: int) -> list[range]:
    """Sequences 0 … count−1 in batches whose keys and values stay under 1.5 GiB."""
    d = decoder.dimensions
    per_token = 2 * 4 * d.num_hidden_layers * d.num_key_value_heads * d.head_dim
    size = max(1, min(count, _CACHE_BYTES // (per_token * length)))
    return [range(at, min(at + size, count)) for at in range(0, count, size)]


def write(
    decoder: Decoder,
    sequences: range,
    total: int,
    length: int,
    seed: int,
    stage: str = "calibrate",
) -> Steps[Tensor]:
    """Write a batch of the `total` sequences, ids ``[batch, length]``.

    A model that does not fit into memory is read from disk again at every token, block by block.
    """
    tokenizer = decoder.checkpoint.tokenizer
    generator = torch.Generator().manual_seed(seed * 1_000_003 + sequences.start)
    ends = set(special.ends(tokenizer, decoder.checkpoint.generation_config()))
    ends |= set() if tokenizer.pad_token_id is None else {tokenizer.pad_token_id}
    start_tokens = _document_starts(tokenizer, decoder.dimensions.vocab_size)
    script = chat_script(tokenizer)
    texts = [Sequence(script, turn=0 if i % 2 else -1) for i in sequences]
    d = decoder.dimensions
    keep = decoder.stays and fits_in_memory(decoder)
    blocks = [decoder.block(i) for i in range(d.num_hidden_layers)] if keep else []
    head, embed = decoder.ends()
    caches = decoder.caches(len(texts), length)

    ids = torch.empty(len(texts), 0, dtype=torch.long)
    proposed = torch.full((len(texts),), next(iter(ends), -1))
    for position in range(length):
        starts = start_tokens[torch.randint(len(start_tokens), (len(texts),), generator=generator)]
        tokens = _advance(texts, proposed, starts, ends, first=position == 0)
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        done = sequences.start + len(sequences) * position / length
        yield Progress(stage, done, total, "the model writes text")
        x = embed(tokens[:, None], position)
        for i, cache in enumerate(caches):
            block: Block = blocks[i] if keep else decoder.block(i)
            x = block(x, cache=cache)
        probabilities = head(x[:, 0]).softmax(-1)
        least = _MIN_P * probabilities.amax(-1, keepdim=True)
        probabilities = probabilities.where(probabilities >= least, 0)
        proposed = sample(probabilities, generator)
    return ids


def _advance(
    texts: list[Sequence], proposed: Tensor, starts: Tensor, ends: set[int], *, first: bool
) -> Tensor:
    """The next token of every sequence: its forced one, or the model's proposal."""
    tokens = proposed.clone()
    for row, text in enumerate(texts):
        token = int(proposed[row])
        if first:
            text.next_turn(int(starts[row]))
        elif not text.forced and token in ends:
            text.next_turn(int(starts[row]))
            if text.forced[0] == token:  # the model has just written this token itself
                text.forced.popleft()
            continue
        if text.forced:
            tokens[row] = text.forced.popleft()
    return tokens


def _document_starts(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> Tensor:
    """Tokens that a document may begin with."""
    openings = Pieces(tokenizer).openings(vocab_size)
    if not openings:
        raise CalibrationError(
            "calibrate.source: self: no token of the vocabulary is text to begin with",
            hint="name a text file",
        )
    return torch.tensor(openings)
