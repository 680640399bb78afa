"""edgepack's own forward pass in float32 as a runtime, for checkpoints that no other one runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from edgepack.checkpoint.special import wrapping
from edgepack.model.block import Block
from edgepack.model.decoder import Decoder, fits_in_memory
from edgepack.runtimes.base import Closing
from edgepack.runtimes.forks import Fork, check_fits


class TorchDecoder(Closing):
    """A `Scorer`. The blocks stay in memory if the model fits (`fits_in_memory`); otherwise every
    call reads them again."""

    def __init__(self, decoder: Decoder, context: int, sequences: int = 1) -> None:
        self.decoder, self.context, self.sequences = decoder, context, sequences
        self.vocab_size = decoder.dimensions.vocab_size
        self._tokenizer = decoder.checkpoint.tokenizer
        before, _ = wrapping(self._tokenizer)
        self.bos: int | None = before[0] if before else None
        blocks = range(decoder.dimensions.num_hidden_layers)
        self._kept = [decoder.block(i) for i in blocks] if fits_in_memory(decoder) else []
        self._embedding, self._head = decoder.embedding(), decoder.head()

    @torch.no_grad()
    def _last(self, tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states ``[batch, time, hidden]`` before the head."""
        x = self.decoder.embed(tokens, self._embedding)
        for block in self._blocks():
            x = block(x)
        return x

    def _blocks(self) -> Iterator[Block]:
        count = self.decoder.dimensions.num_hidden_layers
        return iter(self._kept) if self._kept else map(self.decoder.block, range(count))

    @torch.no_grad()
    def logits(self, tokens: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """See `Scorer.logits`."""
        last = self._last(torch.tensor([list(tokens)]))[0, first:]
        found: NDArray[np.float32] = self._head(last).cpu().numpy()
        return found

    @torch.no_grad()
    def branches(self, forks: Sequence[Fork]) -> Iterator[NDArray[np.float32]]:
        """See `Scorer.branches`; a fork's branches are one batch, padded at their ends with tokens
        that they do not attend to."""
        check_fits(forks, self.context, self.sequences)
        for fork in forks:
            rows = [torch.tensor([*fork.stem, *branch[:-1]]) for branch in fork.branches]
            last = self._last(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True))
            start = len(fork.stem) - 1
            for row, branch in zip(last, fork.branches, strict=True):
                yield self._head(row[start : start + len(branch)]).cpu().numpy()

    def tokenize(self, text: str, *, bos: bool = True, special: bool = False) -> list[int]:
        """See `Scorer.tokenize`."""
        ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=not special
        )
        return [self.bos, *ids] if bos and self.bos is not None else ids

    def close(self) -> None:
        """See `Scorer.close`."""
        self._kept = []
