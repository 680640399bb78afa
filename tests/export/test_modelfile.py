"""Modelfiles say what they are to say, read by Ollama's grammar (`tests.support.ollama`)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.checkpoint import open_checkpoint
from edgepack.export import programs
from edgepack.export.modelfile import _can_stop, modelfile, stops
from tests.support.ollama import parse
from tests.support.tiny import SPECIAL, make_model

BASE, FACTORS = ("from", "./base.gguf"), ("adapter", "./factors.gguf")


def test_the_grammar_is_that_of_ollama_s_page():
    """Its examples, and what its parser says of quotation marks."""
    text = """# comment, with "marks"
FROM llama3.2
PARAMETER temperature 1
parameter stop "<|im_end|>"
TEMPLATE \"\"\"{{ .System }}
{{ .Prompt }}  "quoted"
\"\"\"
SYSTEM You are Mario from super mario bros, acting as an assistant.
ADAPTER ./my adapters/x.gguf
MESSAGE user Is Toronto in Canada?
"""
    assert parse(text) == [
        ("from", "llama3.2"),
        ("parameter", "temperature", "1"),
        ("parameter", "stop", "<|im_end|>"),
        ("template", '{{ .System }}\n{{ .Prompt }}  "quoted"\n'),
        ("system", "You are Mario from super mario bros, acting as an assistant."),
        ("adapter", "./my adapters/x.gguf"),
        ("message", "user", "Is Toronto in Canada?"),
    ]
    for wrong in (
        "",
        "ADAPTER ./x",
        "FROM x\nNONSENSE y",
        'FROM x\nSYSTEM "a\nb',
        "FROM\nSYSTEM x",
    ):
        with pytest.raises(ValueError, match=r"no FROM|no command|are open|no word|missing"):
            parse(wrong)


def test_it_names_the_files_beside_it():
    assert parse(modelfile(factors=None)) == [BASE]
    assert parse(modelfile()) == [BASE, FACTORS]
    assert parse(modelfile("my model.gguf", "L and R.gguf")) == [
        ("from", "./my model.gguf"),
        ("adapter", "./L and R.gguf"),
    ]


def test_it_says_which_ollama_refuses_factors_and_what_to_do():
    (comment,) = [line for line in modelfile().splitlines() if line.startswith("#")]
    assert programs.NO_ADAPTERS_SINCE in comment
    assert "export.merge_factors: true" in comment
    assert "#" not in modelfile(factors=None)


PRINTED = st.characters(exclude_categories=("C", "Z"), include_characters=" ")
TEXTS = st.text(PRINTED | st.sampled_from('"# '), min_size=1, max_size=30)


@given(st.lists(TEXTS.filter(_can_stop)))
def test_every_stop_arrives_as_it_was(texts):
    assert parse(modelfile(stops=texts))[2:] == [("parameter", "stop", text) for text in texts]


@pytest.mark.parametrize(
    "text", ['say "x"', '"', '""', '"x', 'x"', " x ", "#", "a\\n", "</s>", "▁｜"]
)
def test_stops_with_marks_and_spaces(text):
    assert _can_stop(text)
    assert parse(modelfile(stops=[text]))[2:] == [("parameter", "stop", text)]


@pytest.mark.parametrize("text", ["", " ", "\n", "a\nb", 'x"""y', "a\x00", "x" * 200])
def test_stops_that_no_line_can_hold_are_left_out(text):
    assert not _can_stop(text)


def test_all_ends_of_a_checkpoint_are_stops(tmp_path):
    make_model(tmp_path / "m")
    (tmp_path / "m/generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    checkpoint = open_checkpoint(str(tmp_path / "m"))
    found = parse(modelfile(factors=None, stops=stops(checkpoint)))
    assert found == [BASE, *(("parameter", "stop", SPECIAL[end]) for end in (0, 2))]


def test_what_programs_refuse_is_said_for_types_and_families():
    assert programs.refusals("llama", {"q4_0"}, factors=False) == []
    assert programs.llama_cpp({"q4_0", "q6_k"}) is None
    assert programs.llama_cpp({"q4_0", "q1_0", "q2_0"}) == "llama.cpp b10015 or later (for q2_0)"
    (line,) = programs.refusals("llama", {"q4_0"}, factors=True)
    assert "only before 0.34.1" in line
    assert "from 0.30 on" in programs.refusals("qwen3", {"q4_0"}, factors=True)[0]
    first, second = programs.refusals("llama", {"q2_0", "tq2_0", "f16"}, factors=False)
    assert "q2_0" in first
    assert "0.31.2 and newer refuses files with tq2_0" in second
