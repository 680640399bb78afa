"""Zero-shot tasks: rows become the harness's prompts, samples are spread, bad files are named."""

from __future__ import annotations

import bz2
import json
import re
from pathlib import Path

import pytest

from edgepack.errors import EdgepackError, RecipeError
from edgepack.metrics import tasks
from edgepack.metrics.tasks import TASKS, Item, load

REAL = Path(__file__).parents[3] / "shared/data/zeroshot"


def lines(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def arc(stem, texts, labels, key):
    choices = [{"text": t, "label": x} for t, x in zip(texts, labels, strict=True)]
    return {"id": "x", "question": {"stem": stem, "choices": choices}, "answerKey": key}


HELLASWAG = """\
Clean and jerk: A lady walks to a barbell. She bends down. the lady
3
swings.
pulls the barbell [substeps] forward.
pulls a rope.
lifts it.
Youth: How to sleep. Go to bed [title] early.
0
Lie down.
Stand up.
Walk.
Run.
"""


@pytest.fixture
def data(tmp_path):
    """A file of two or three rows for every task."""
    key = [arc("Why?", ["a", "b", "c", "d"], "ABCD", "D"), arc("How?", ["e", "f"], "12", "B")]
    lines(tmp_path / "arc_easy_test.jsonl", key)
    passage = {"query": "Passage: It is.\nQuestion: is it?", "choices": ["no", "yes"], "gold": 1}
    lines(tmp_path / "boolq_dev.first1000.jsonl", [passage, passage])
    effect = {
        "query": "He ate, and so on, therefore",
        "choices": ["he slept.", "i ran."],
        "gold": 0,
    }
    cause = {"query": "He ate, because", "choices": ["he fasted.", "it rained."], "gold": 1}
    lines(tmp_path / "copa_dev.jsonl", [effect, cause])
    (tmp_path / "hellaswag_val_full.txt.bz2").write_bytes(bz2.compress(HELLASWAG.encode()))
    lines(
        tmp_path / "piqa/valid.jsonl",
        [{"goal": f"Do {i}.", "sol1": "this ", "sol2": "that"} for i in range(3)],
    )
    (tmp_path / "piqa/valid-labels.lst").write_text("1\n0\n1\n")
    (tmp_path / "winogrande-debiased-eval.csv").write_text(
        '0,"The jug, not the cup, fell because the _ was wet.",jug,cup,2\n1,_ ran.,Ann,Eve,1\n\n'
    )
    return tmp_path


EXPECTED = {
    "arc_easy": Item.from_context("Question: Why?\nAnswer:", ["a", "b", "c", "d"], 3),
    "boolq": Item.from_context("It is.\nQuestion: is it?\nAnswer:", ["no", "yes"], 1),
    "copa": Item.from_context("He ate, and so on therefore", [" he slept.", " i ran."], 0),
    "hellaswag": Item.from_context(
        "Clean and jerk: A lady walks to a barbell. She bends down. The lady",
        ["swings.", "pulls the barbell forward.", "pulls a rope.", "lifts it."],
        3,
    ),
    "piqa": Item.from_context("Question: Do 0.\nAnswer:", ["this ", "that"], 1),
    "winogrande": Item(
        (
            "The jug, not the cup, fell because the jug",
            "The jug, not the cup, fell because the cup",
        ),
        ("was wet.", "was wet."),
        1,
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_row_becomes_the_harness_prompt(name, data):
    assert load(name, data)[0] == EXPECTED[name]


def test_arcs_answer_is_a_position_whatever_the_labels_say(data):
    assert load("arc_easy", data)[1].gold == 1


def test_wikihow_contexts_keep_their_end_and_lose_their_markup(data):
    item = load("hellaswag", data)[1]
    assert item.contexts[0] == "Youth: How to sleep. Go to bed. early."
    assert item.choices == ("Lie down.", "Stand up.", "Walk.", "Run.")


def test_a_limit_takes_items_from_everywhere_and_the_same_each_time(data):
    rows = [{"goal": str(i), "sol1": "a", "sol2": "b"} for i in range(100)]
    lines(data / "piqa/valid.jsonl", rows)
    (data / "piqa/valid-labels.lst").write_text("0\n" * 100)
    found = [item.contexts[0].split()[1] for item in load("piqa", data, 8)]
    assert found == ["0", "12", "25", "37", "50", "62", "75", "87"]
    assert len(load("piqa", data, 1000)) == 100


def test_an_unknown_task_is_answered_with_the_nearest():
    with pytest.raises(RecipeError, match="there is no 'hellswag'") as error:
        load("hellswag", Path())
    assert error.value.hint == "did you mean hellaswag?"


BROKEN = {
    "empty": ("copa_dev.jsonl", "", "is empty"),
    "no json": ("copa_dev.jsonl", "{", "cannot be read"),
    "a missing key": ("copa_dev.jsonl", '{"query": "a"}', "item 1 cannot be read .no 'choices'"),
    "gold": ("copa_dev.jsonl", '{"query": "a", "choices": ["b", "c"], "gold": 2}', "answer 2 of 2"),
    "no text": ("copa_dev.jsonl", '{"query": "a", "choices": ["b", ""], "gold": 0}', "is empty"),
    "no text at all": ("copa_dev.jsonl", '{"query": 1, "choices": ["b"], "gold": 0}', "item 1"),
    "null for a choice": (
        "copa_dev.jsonl",
        '{"query": "a", "choices": ["b", null], "gold": 0}',
        "item 1 .*None is no text",
    ),
    "letters for choices": (
        "boolq_dev.first1000.jsonl",
        '{"query": "a", "choices": "ny", "gold": 0}',
        "item 1 .*the choices are 'ny'",
    ),
    "true for an answer": (
        "boolq_dev.first1000.jsonl",
        '{"query": "a", "choices": ["n", "y"], "gold": true}',
        "item 1 .*True is no index",
    ),
    "null for a stem": (
        "arc_easy_test.jsonl",
        '{"question": {"stem": null, "choices": [{"text": "a"}]}, "answerKey": "A"}',
        "item 1 .*None is no text",
    ),
    "no answer": (
        "arc_easy_test.jsonl",
        '{"question": {"stem": "a", "choices": [{"text": "a"}]}, "answerKey": ""}',
        "item 1 ",
    ),
    "a row that is a list": ("boolq_dev.first1000.jsonl", "[1]", "item 1 "),
    "half an emoji": ("boolq_dev.first1000.jsonl", '{"query": "\\ud83d"}', "line 1"),
    "deep": ("boolq_dev.first1000.jsonl", "\n" + "[" * 5000, "line 2: is nested too deeply"),
    "a label too few": ("piqa/valid-labels.lst", "0\n", "3 rows, 1 labels"),
    "not bzip2": ("hellaswag_val_full.txt.bz2", "x", "cannot be read"),
    "no gap": ("winogrande-debiased-eval.csv", "0,no gap,a,b,1\n", "item 1 cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_its_fault(name, data):
    file, content, message = BROKEN[name]
    (data / file).write_text(content, encoding="utf-8")
    task = next(task for task, about in TASKS.items() if file[:4] == about.file[:4])
    with pytest.raises(EdgepackError, match=message) as error:
        load(task, data)
    assert str(data) in str(error.value)
    assert len(error.value.message) < 300


def test_what_unpacks_to_too_much_is_refused(data, monkeypatch):
    monkeypatch.setattr(tasks, "MAX_TEXT", 1000)
    (data / "hellaswag_val_full.txt.bz2").write_bytes(bz2.compress(b"x" * 2000))
    with pytest.raises(EdgepackError, match="more than 0 MB of text"):
        load("hellaswag", data)


def test_a_cut_hellaswag_is_an_error(data):
    cut = "\n".join(HELLASWAG.split("\n")[:-2])
    (data / "hellaswag_val_full.txt.bz2").write_bytes(bz2.compress(cut.encode()))
    with pytest.raises(EdgepackError, match="11 lines are not six an item"):
        load("hellaswag", data)


def test_a_missing_file_says_what_belongs_in_the_folder(tmp_path):
    with pytest.raises(EdgepackError, match=r"there is no file .*valid\.jsonl") as error:
        load("piqa", tmp_path)
    assert "winogrande-debiased-eval.csv" in str(error.value.hint)


COUNTS = {
    "arc_easy": [591, 581, 633, 560],
    "boolq": [375, 625],
    "copa": [55, 45],
    "hellaswag": [2515, 2485, 2584, 2458],
    "piqa": [910, 928],
    "winogrande": [628, 639],
}


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="the data sets are not here")
@pytest.mark.parametrize("name", TASKS)
def test_the_real_files_have_the_items_their_page_says(name):
    items = load(name, REAL)
    assert [sum(item.gold == gold for item in items) for gold in range(4)][
        : len(items[0].choices)
    ] == COUNTS[name]
    assert all(len(item.choices) == len(COUNTS[name]) for item in items)
    if name == "hellaswag":
        assert not any(re.search(r"\[.*\]", text) for item in items for text in item.choices)
    assert load(name, REAL, 7)[0] == items[0]


@pytest.mark.skipif(not REAL.is_dir(), reason="the data sets are not here")
def test_the_real_arc_has_items_whose_labels_are_numbers():
    text = (REAL / TASKS["arc_easy"].file).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    labels = [row["question"]["choices"][0]["label"] for row in rows]
    assert {row["answerKey"] for row in rows} == set("ABCD")
    at = labels.index("1")
    assert load("arc_easy", REAL)[at].gold == "ABCD".index(rows[at]["answerKey"])
