"""How documents of many kinds begin, so that a model writes text as varied as what people give it.

A language model that begins with a random token mostly writes prose and chats. H of such text alone
says little about what other languages or code need.
"""

from __future__ import annotations

from itertools import chain

KINDS: dict[str, tuple[str, ...]] = {
    "encyclopaedia": (
        "= History of the",
        "The city lies on the river",
        "(born 12 March 1931) was an",
        "The species is found in",
        "The battle of",
        " = Production = \n\nFilming began in",
        "The album was released on",
        "The treaty was signed in",
    ),
    "code": (
        "import os\nimport sys\n\n\ndef ",
        "#include <stdio.h>\n\nint main(",
        "function render(items) {\n  ",
        "class Node:\n    def __init__(self",
        "SELECT name, count(*) FROM",
        "<!DOCTYPE html>\n<html>\n<head>",
        "#!/bin/bash\nset -e\n\nfor file in",
        '{\n  "name": "',
    ),
    "news": (
        "LONDON (Reuters) - ",
        "The government said on Tuesday that",
        "Shares of the company rose",
        "Police are looking for",
        "Breaking: ",
        "The minister told reporters",
        "After last night's game, the coach",
        "A new study suggests that",
    ),
    "languages": (
        "Die Stadt wurde im Jahr",
        "La ville est située",
        "El presidente dijo que",
        "Москва является",
        "這個",
        "日本の",
        "في عام",
        "यह एक",
    ),
    "mathematics": (
        "Question: A train leaves at 9:15 and",
        "Let f(x) = 3x^2 - 4x + 1. Then",
        "Theorem 1. Let ",
        "Solve for x: 2x + 7 = 15\n\n",
        "| year | revenue | cost |\n|---|---|---|\n| 2019 |",
        "Anna has 12 apples. She gives",
        "The probability that",
        "1, 1, 2, 3, 5, 8,",
    ),
    "talk": (
        "lol i dont even know why",
        "Subject: Re: meeting on friday\n\nHi all,",
        "Q: How do I reset my password?\nA:",
        "★☆☆☆☆ Do not buy this.",
        "omg did you see what",
        "- So where were you?\n- I was",
        "Dear Sir or Madam,\n\nI am writing to",
        "anyone else having problems with",
    ),
    "noise": (
        "the company said it expects to report a loss",
        "THE UNITED STATES OF AMERICA",
        "teh quick borwn fox",
        "mr smith said the board had",
        "0x7f 0x45 0x4c 0x46",
        "2024-03-01 12:04:55 ERROR",
        "https://www.",
        "!!! ??? ...",
    ),
    "fiction": (
        "Once upon a time there was",
        "It was a dark night when",
        '"You cannot be serious," said',
        "CHAPTER II.\n\nWhen the carriage",
        "ACT I. SCENE 2.\n\nENTER THE KING",
        "She had never told anyone that",
        "The old man put down his pipe and",
        "On the third day of the voyage",
    ),
}
"""Kind of text → how it may begin; of all kinds the same number."""


def texts() -> list[str]:
    """All of them; neighbours are of different kinds."""
    return list(chain.from_iterable(zip(*KINDS.values(), strict=True)))
