"""Zero-shot multiple-choice tasks from local files, with lm-evaluation-harness's prompts.

Prompts, choices and the use of `acc_norm` follow its task definitions (lm_eval/tasks/*/*.yaml of
v0.4), so that published tables are about the same strings. Where a file here stores a row
differently from the harness's data set, the loader converts it, and its docstring says so. Only the
sample differs: the harness's ``--limit`` takes the first rows, ours are evenly spread (HellaSwag's
first third comes from another source than the rest), BoolQ is the file's first 1,000 rows of 3,270,
and ARC-easy its 2,365 questions of four choices out of 2,376.
"""

from __future__ import annotations

import bz2
import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.core import plugins
from edgepack.core.untrusted import parse_json, quote, shorten
from edgepack.errors import EdgepackError, RecipeError

MAX_TEXT = 256 << 20
"""Most characters that a compressed file may unpack to."""


@dataclass(frozen=True)
class Item:
    """One question: which of the `choices` follows the context? `gold` is the right one's index.

    `contexts` has one text per choice; they differ only where the choice fills a gap in the text.
    One space separates context and choice.
    """

    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    gold: int

    def __post_init__(self) -> None:
        texts = (*self.contexts, *self.choices)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a context or a choice is no text")
        if not all(text.strip() for text in texts):
            raise ValueError("a context or a choice is empty")
        if type(self.gold) is not int:
            raise ValueError(f"the answer {quote(self.gold)} is no index")
        if not 0 <= self.gold < len(self.choices) == len(self.contexts):
            raise ValueError(f"answer {self.gold} of {len(self.choices)} choices")

    @staticmethod
    def from_context(context: str, choices: Sequence[str], gold: int) -> Item:
        """An item whose choices all follow the same context."""
        if not isinstance(choices, list | tuple):  # a text would be a sequence of letters
            raise ValueError(f"the choices are {quote(choices)}")
        return Item((context,) * len(choices), tuple(choices), gold)


@dataclass(frozen=True)
class Task:
    """A task: its file, the readers of its rows, and whether the harness reports `acc_norm`."""

    file: str
    rows: Callable[[Path], Sequence[Any]]
    item: Callable[[Any], Item]
    normalised: bool = False


def load_all(
    names: Sequence[str], folder: Path | None, limit: int | None = None
) -> dict[str, list[Item]]:
    """The items of several tasks, by name; see `load`."""
    if not names:
        return {}
    if folder is None:
        hint = "the folder with " + ", ".join(task.file for task in TASKS.values())
        raise RecipeError("--tasks: needs --data FOLDER", hint=hint)
    return {name: load(name, folder, limit) for name in names}


def load(name: str, folder: Path, limit: int | None = None) -> list[Item]:
    """The items of a task whose file is in `folder`. With a limit, that many of them, evenly
    spread; they are the same ones every time."""
    if name not in TASKS:
        known = tuple(TASKS)
        raise RecipeError(f"tasks: there is no {name!r}", hint=plugins.suggest(name, known))
    task = TASKS[name]
    path = folder / task.file
    try:
        rows = task.rows(path)
    except FileNotFoundError as error:
        raise EdgepackError(
            f"{name}: there is no file {error.filename}",
            hint="--data is the folder with " + ", ".join(t.file for t in TASKS.values()),
        ) from None
    except (OSError, ValueError, EOFError, csv.Error, RecursionError) as error:
        reason = shorten(getattr(error, "strerror", None) or str(error), 120)
        where = shorten(str(path), 120)
        raise EdgepackError(
            f"{name}: {where} cannot be read ({reason})", hint="fetch the file again"
        ) from None
    if not rows:
        raise EdgepackError(f"{name}: {path} is empty", hint="is the download complete?")
    count = min(limit or len(rows), len(rows))
    return [_read(task, path, rows, i * len(rows) // count) for i in range(count)]


def _read(task: Task, path: Path, rows: Sequence[Any], index: int) -> Item:
    try:
        return task.item(rows[index])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = shorten(f"no {error}" if isinstance(error, KeyError) else str(error), 100)
        raise EdgepackError(
            f"{shorten(str(path), 120)}: item {index + 1} cannot be read ({reason})",
            hint="the file has another form than this task's",
        ) from None


class _RowError(EdgepackError, ValueError):
    """A line is not JSON; `load` adds the name of the file."""


def _jsonl(path: Path) -> list[Any]:
    with path.open(encoding="utf-8") as file:
        return [
            parse_json(line, f"line {number}", _RowError)
            for number, line in enumerate(file, 1)
            if line.strip()
        ]


def _labelled(path: Path) -> list[Any]:
    """Rows of a JSONL, with the lines of ``NAME-labels.lst`` beside it."""
    rows = _jsonl(path)
    labels = path.with_name(f"{path.stem}-labels.lst").read_text(encoding="utf-8").split()
    if len(rows) != len(labels):
        raise ValueError(f"{len(rows)} rows, {len(labels)} labels")
    return list(zip(rows, labels, strict=True))


def _csv(path: Path) -> list[Any]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.reader(file) if row]


def _sixes(path: Path) -> list[Any]:
    """Six lines an item, compressed with bzip2."""
    with bz2.open(path, "rt", encoding="utf-8", newline="\n") as file:
        text = file.read(MAX_TEXT + 1)  # a small file can unpack to anything
    if len(text) > MAX_TEXT:
        raise ValueError(f"more than {MAX_TEXT >> 20} MB of text")
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if len(lines) % 6:
        raise ValueError(f"{len(lines)} lines are not six an item")
    return [lines[i : i + 6] for i in range(0, len(lines), 6)]


def _text(value: Any) -> str:
    """Check that a value is a text; None would become "None" in a prompt."""
    if not isinstance(value, str):
        raise ValueError(f"{quote(value)} is no text")
    return value


def _piqa(row: Any) -> Item:
    """``goal``, ``sol1``, ``sol2``, and the index of the right one."""
    about, label = row
    context = f"Question: {_text(about['goal'])}\nAnswer:"
    return Item.from_context(context, (about["sol1"], about["sol2"]), int(label))


def _arc_easy(row: Any) -> Item:
    """AI2's schema. ``answerKey`` is a position, A = first: some items label their choices 1–4 but
    have an answer of A–D."""
    question = row["question"]
    choices = [choice["text"] for choice in question["choices"]]
    if len(row["answerKey"]) != 1:
        raise ValueError(f"answer {quote(row['answerKey'])}")
    context = f"Question: {_text(question['stem'])}\nAnswer:"
    return Item.from_context(context, choices, "ABCDE".index(row["answerKey"]))


def _hellaswag(row: Any) -> Item:
    """llama.cpp's six lines: "activity: context", index of the right ending, four endings.

    The harness capitalises the sentence that the endings finish, and the file does not. In the file
    it is the text after the last full stop, if the context ends without one (ActivityNet's contexts
    do, WikiHow's do not). Bracketed remains of WikiHow's markup are removed, as in the harness.
    """
    context, label, *endings = row
    begun = re.sub(r"(?<=[.!?] )[^.!?]+$", lambda found: found[0].capitalize(), context)
    return Item.from_context(
        _unbracketed(begun), [_unbracketed(text) for text in endings], int(label)
    )


def _unbracketed(text: str) -> str:
    """The harness's ``preprocess`` of HellaSwag."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _winogrande(row: Any) -> Item:
    """``index,sentence,option1,option2,answer``: the text after the gap ``_`` is scored once after
    each option (partial evaluation, Trinh & Le 2018)."""
    _, sentence, *options, answer = row
    before, after = sentence.split("_")
    contexts = tuple(before + option for option in options)
    return Item(contexts, (after.strip(),) * len(options), int(answer) - 1)


def _boolq(row: Any) -> Item:
    """llm-foundry's "Passage: …\\nQuestion: …?", without "Passage: ", which the harness lacks."""
    context = row["query"].removeprefix("Passage: ") + "\nAnswer:"
    return Item.from_context(context, row["choices"], row["gold"])


def _copa(row: Any) -> Item:
    """llm-foundry's rows, whose choices already begin in lower case. Its comma before "because" and
    "therefore" is removed, because the harness has none. The harness has a second space before the
    choice, which is added."""
    context = re.sub(r",(?= (because|therefore)$)", "", row["query"])
    if not isinstance(row["choices"], list):
        raise ValueError(f"the choices are {quote(row['choices'])}")
    return Item.from_context(
        context, [f" {_text(choice)}" for choice in row["choices"]], row["gold"]
    )


TASKS = {
    "arc_easy": Task("arc_easy_test.jsonl", _jsonl, _arc_easy, normalised=True),
    "boolq": Task("boolq_dev.first1000.jsonl", _jsonl, _boolq),
    "copa": Task("copa_dev.jsonl", _jsonl, _copa),
    "hellaswag": Task("hellaswag_val_full.txt.bz2", _sixes, _hellaswag, normalised=True),
    "piqa": Task("piqa/valid.jsonl", _labelled, _piqa, normalised=True),
    "winogrande": Task("winogrande-debiased-eval.csv", _csv, _winogrande),
}
"""Name (the harness's) → task. Files are those that `load` finds in its folder."""
