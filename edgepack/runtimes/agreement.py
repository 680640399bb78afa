"""A check that the runtime tokenizes text as the source's tokenizer does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.checkpoint import probes, special
from edgepack.checkpoint.probes import Difference
from edgepack.checkpoint.vocabulary_check import Reasons
from edgepack.errors import ExportError
from edgepack.runtimes.base import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HINT = "this should have been noticed while planning; please report it, with the tokenizer's files"


def agreement(runtime: Scorer, tokenizer: PreTrainedTokenizerFast) -> None:
    """Compare the token ids of difficult texts; `ExportError` if everyday text gets other ids."""
    reasons = Reasons(tokenizer)

    def encode(text: str) -> list[int]:
        return runtime.tokenize(text, bos=False, special=True)

    verdict = probes.compare(tokenizer, encode, reasons.excuses)
    wrong = list(verdict.wrong)
    before, after = special.wrapping(tokenizer)
    bare = tokenizer.encode("a", add_special_tokens=False)
    found = runtime.tokenize("a", bos=True, special=True)
    # llama.cpp puts one token on each side; vocabulary_check names those that it leaves out.
    starts, stops = (before, before[:1]), (after[:0], after, after[-1:])
    if found not in [[*start, *bare, *stop] for start in starts for stop in stops]:
        wrong.append(Difference("a", tokenizer.encode("a"), found))
    if wrong:
        shortest = min(wrong, key=lambda difference: len(difference.text))
        raise ExportError(
            f"the runtime reads text otherwise than the model: {reasons.explain(shortest)}; "
            f"{shortest}",
            hint=HINT,
        )
