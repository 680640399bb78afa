"""The model writes its own calibration text, so that none has to be downloaded or licensed.

Of six sequences, three are documents of many kinds (`openings`) and one begins with a random token
of the vocabulary (LLM-QAT, Liu et al., arXiv 2305.17888). The others are chats, and so is what
follows the random document: the template's opening is given, and the model writes both sides
(Magpie, Xu et al., arXiv 2406.08464). Where a model has no chat template, all are documents.
Sampling is at temperature 1, without the tokens less than a twentieth as likely as the likeliest
(min-p, Nguyen et al., arXiv 2407.01082), because pure sampling of a small model soon drifts into
noise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgepack.calibration import openings
from edgepack.calibration.sampling import sample
from edgepack.calibration.side_by_side import Map, in_turn, side_by_side
from edgepack.checkpoint import special
from edgepack.checkpoint.pieces import Pieces
from edgepack.checkpoint.templates import TemplateError
from edgepack.core.accelerator import CPU
from edgepack.core.progress import Progress, Steps
from edgepack.errors import CalibrationError
from edgepack.model.block import Block, Cache
from edgepack.model.decoder import Decoder, Head, fits_in_memory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CACHE_BYTES = 3 << 29  # keys and values of one batch
_MIN_P = 0.05
_TOGETHER = 18
"""Texts that pass the model together on a core, at most."""


CYCLE = ("opening", "chat", "opening", "random", "chat", "opening")
"""What sequences are, in turn."""
STRIDE = 3
"""Steps from the opening of a sequence to that of the next; its next document is one step on."""


@dataclass
class Sequence:
    """A text being written: forced tokens first, then the model's. The turns of a chat, or its
    documents, begin with the `scripts`; turn −1 is a document that begins with any token."""

    scripts: list[list[int]]
    turn: int
    forced: deque[int] = field(default_factory=deque)

    def next_turn(self, start: int) -> None:
        """Begin a document with token `start`, or continue with the next script."""
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
    dtype: torch.dtype = torch.float32,
    cycle: tuple[str, ...] = CYCLE,
) -> Steps[Tensor]:
    """Write a batch of the `total` sequences, ids ``[batch, length]``, with products in `dtype`.
    The `cycle` says what they are.

    A model that does not fit into memory is read from disk again at every token, block by block.
    """
    tokenizer = decoder.checkpoint.tokenizer
    generator = torch.Generator().manual_seed(seed * 1_000_003 + sequences.start)
    ends = set(special.ends(tokenizer, decoder.checkpoint.generation_config()))
    ends |= set() if tokenizer.pad_token_id is None else {tokenizer.pad_token_id}
    start_tokens = _document_starts(tokenizer, decoder.dimensions.vocab_size)
    script = chat_script(tokenizer)
    begin = [tokenizer.encode(text, add_special_tokens=False) for text in openings.texts()]
    texts = [_begun(i, cycle, script, begin, seed) for i in sequences]
    ids = torch.empty(len(texts), 0, dtype=torch.long)
    proposed = torch.full((len(texts),), next(iter(ends), -1))
    predictions = _Predictions(decoder, len(texts), length, dtype)
    with side_by_side() if len(predictions.parts) > 1 else nullcontext(in_turn) as parts:
        for position in range(length):
            chosen = torch.randint(len(start_tokens), (len(texts),), generator=generator)
            starts, first = start_tokens[chosen], position == 0
            tokens = _advance(texts, proposed, starts, ends, first=first)
            ids = torch.cat([ids, tokens[:, None]], dim=1)
            done = sequences.start + len(sequences) * position / length
            yield Progress(stage, done, total, "the model writes text")
            proposed = sample(predictions.after(tokens, parts), generator).cpu()
    return ids


def _begun(
    index: int, cycle: tuple[str, ...], chat: list[list[int]], begin: list[list[int]], seed: int
) -> Sequence:
    """A sequence with nothing written yet."""
    rounds, place = divmod(index, len(cycle))
    kind = cycle[place]
    if kind != "opening":
        return Sequence(chat, turn=0 if kind == "chat" else -1)
    number = rounds * cycle.count(kind) + cycle[:place].count(kind)
    first = (seed + STRIDE * number) % len(begin)
    return Sequence(begin[first:] + begin[:first], turn=0)


class _Predictions:
    """What a model expects after texts that become longer.

    The texts pass the model in parts, each on one core: the products of a few tokens are too small
    to be divided among cores. The parts depend on the number of texts alone, and so do the results.
    There is one part on another device, and of a decoder that never stays in memory, whose blocks
    would be made for each.
    """

    def __init__(self, decoder: Decoder, texts: int, length: int, dtype: torch.dtype) -> None:
        self.decoder, self.dtype, self.position = decoder, dtype, 0
        kept = decoder.stays and fits_in_memory(decoder)
        self.indices = range(decoder.dimensions.num_hidden_layers)
        self.kept = [self._block(i) for i in self.indices] if kept else []
        head, self.embed = decoder.ends()
        self.head = head.multiplying(dtype) if isinstance(head, Head) else head
        parted = decoder.stays and decoder.device == CPU
        count = min(texts, 2 * -(-texts // (2 * _TOGETHER))) if parted else 1
        self.parts = torch.arange(texts).tensor_split(count)
        self.caches = [decoder.caches(len(rows), length) for rows in self.parts]

    def _block(self, index: int) -> Block:
        return self.decoder.block(index).multiplying(self.dtype)

    def after(self, tokens: Tensor, side_by_side: Map) -> Tensor:
        """The probabilities ``[texts, vocab]`` of the token that follows the next one of every
        text; those below the share `_MIN_P` of the largest are 0."""
        states = [self.embed(tokens[rows, None], self.position) for rows in self.parts]
        for some in [self.indices] if self.kept else ([i] for i in self.indices):
            blocks = [self.kept[i] if self.kept else self._block(i) for i in some]
            caches = [[own[i] for i in some] for own in self.caches]
            pairs = list(zip(states, caches, strict=True))
            states = side_by_side(partial(_pass, blocks), pairs)
        self.position += 1
        return torch.cat(side_by_side(partial(_likely, self.head), states))


def _pass(blocks: list[Block], part: tuple[Tensor, list[Cache]]) -> Tensor:
    x, caches = part
    for block, cache in zip(blocks, caches, strict=True):
        x = block(x, cache=cache)
    return x


def _likely(head: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    probabilities = head(x[:, 0]).softmax(-1)
    return probabilities.where(probabilities >= _MIN_P * probabilities.amax(-1, keepdim=True), 0)


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
