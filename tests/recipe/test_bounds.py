"""Recipes of strangers: whatever is in the file is read at once, or refused in one short line."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edgepack.errors import RecipeError
from edgepack.recipe.fields import MAX_SEED
from edgepack.recipe.read import load, parse

ALIASES_OF_ALIASES = "a: &a {k: v}\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 12)}]\n"
    for old, new in zip("abcdef", "bcdefg", strict=True)
)
YAML = {
    "a date": ("model: 2021-13-45\nzzz: 1", "zzz: there is no such key"),
    "digits of nothing": ("\nmodel: 0b_", "line 2: '0b_' is no number"),
    "text called a number": ("model: !!float x", "line 1: 'x' is no float"),
    "text called yes": ("slice: !!bool x", "line 1: 'x' is no bool"),
    "a set": ("merge: !!set {x}", "line 1: the tag"),
    "code": ("model: x\nmerge: !!python/name:os.system", "line 2: the tag"),
    "a local tag": ("model: !env HOME", "line 1: the tag '!env' has no meaning"),
    "a key twice": ("model: x\ncompress: {}\nmodel: y", "line 3: 'model' is there twice"),
    "a key twice inside": ("compress: {rank: 1, rank: 2}", "line 1: 'rank' is there twice"),
    "a key that is a list": ("? [x]\n: 1", "line 1: a key is not text"),
    "aliases of aliases": (ALIASES_OF_ALIASES + "merge: *g", "has more than 20000 values"),
    "an alias in itself": ("merge: &m {x: *m}", "line 1: *m repeats what it is part of"),
    "deep lists": ("merge: " + "[" * 90 + "]" * 90, "nested too deeply"),
    "deep mappings": ("merge: " + "{x: " * 90 + "}" * 90, "nested too deeply"),
    "many values": ("merge:\n" + "  - x\n" * 30_000, "has more than 20000 values"),
    "a large file": ("model: " + "x" * 2_000_000, "more than 1 MB"),
    "an escape beyond Unicode": ('model: "\\UFFFFFFFF"', "is not valid YAML (line 1)"),
    "a raw control character": ("model: \x01", "control character"),
    "a number of 9000 digits": ("calibrate: {tokens: " + "7" * 9000 + "}", "is no number"),
    "a long key": ("q" * 900 + ": 1", "there is no such key"),
}
VALUES = {
    "calibrate.tokens": (2**63, "less than or equal to"),
    "calibrate.sequence_length": (2**40, "less than or equal to"),
    "calibrate.seed": (2**63, "less than or equal to"),
    "calibrate.held_out": (float("nan"), "finite number"),
    "calibrate.source": ("a\0b", "control character"),
    "slice.recover.rank": (10**7, "less than or equal to"),
    "slice.round_to": (2**50, "less than or equal to"),
    "compress.iterations": (10**6, "less than or equal to"),
    "compress.pad_width": (2**31, "less than or equal to"),
    "compress.rank": (True, "takes numbers, not True"),
    "compress.ranks": (list(range(5000)), "at most 64 items"),
    "compress.candidates": (["q4_0"] * 100, "at most 64 items"),
    "compress.damping": ([float("inf")], "finite number"),
    "compress.format": ("q" * 1000, "at most 200 characters"),
    "compress.target_size": ("9" * 400, "is not a size"),
    "compress.bits_per_weight": (10**400, ""),
    "recover.steps": (10**12, "less than or equal to"),
    "recover.learning_rate": (1e9, "less than or equal to"),
    "export.measure.context": (10**9, "less than or equal to"),
    "export.measure.text": ("", "is empty"),
    "export.onnx.context": (10**9, "less than or equal to"),
    "export.name": ("../elsewhere", "is a plain name, not a path"),
    "model": ("~nobody-of-that-name/model", "there is no home folder"),
}
NAMES = ("", " ", ".", "..", "/", "a/b", "a\\b", "a\0b", "a\nb", "\ud83d", "n" * 201, "ü" * 101)
PATHS = ("", "  ", "a\tb", "\udc00", "p" * 300, "/".join(["part"] * 2000), "~nobody-of-that-name")


def refused(call) -> RecipeError:
    start = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        call()
    assert time.monotonic() - start < 10  # a busy machine; alone it is a tenth of this at most
    assert len(caught.value.message) < 300
    assert caught.value.message.isprintable()
    return caught.value


def nested(place: str, value):
    """A recipe that has one value at a place."""
    for key in reversed(place.split(".")):
        value = {key: value}
    return value


@pytest.mark.slow
@pytest.mark.parametrize("what", YAML)
def test_a_file_that_is_no_recipe_is_refused_by_its_line(what, tmp_path, monkeypatch):
    text, message = YAML[what]
    monkeypatch.chdir(tmp_path)
    path = Path("r.yaml")  # the folder's own name is not to count
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    assert message in refused(lambda: load(path)).message


@pytest.mark.slow
@pytest.mark.parametrize("place", VALUES)
def test_a_value_beyond_its_bounds_is_refused_by_its_key(place):
    value, message = VALUES[place]
    error = refused(lambda: parse(nested(place, value)))
    assert error.message.startswith(place)
    assert message in error.message


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_the_output_is_named_by_a_plain_name(name):
    assert refused(lambda: parse({"export": {"name": name}})).message.startswith("export.name: ")


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: ascii(path)[:20])
@pytest.mark.parametrize("place", ["model", "calibrate.source", "export.measure.text"])
def test_a_path_is_one_that_can_exist(place, path):
    assert refused(lambda: parse(nested(place, path))).message.startswith(f"{place}: ")


@pytest.mark.parametrize("data", ["x", ["x"], {1: 2}, {"merge": {1: 2}}, {"merge": [1]}], ids=str)
def test_a_recipe_from_python_may_be_anything(data):
    refused(lambda: parse(data))


def test_a_mapping_that_holds_itself_is_refused():
    endless: dict = {}
    endless["merge"] = endless
    assert "nested too deeply" in refused(lambda: parse(endless)).message


@pytest.mark.parametrize("make", ["a folder", "a pipe", "not UTF-8", "a name too long", "a NUL"])
def test_a_path_to_no_recipe_says_so(make, tmp_path):
    path = tmp_path / "r.yaml"
    if make == "a folder":
        path.mkdir()
    elif make == "a pipe":
        os.mkfifo(path)
    elif make == "not UTF-8":
        path.write_bytes(b"model: \xff\xfe")
    else:
        path = tmp_path / ("r" * 5000 if make == "a name too long" else "a\0b")
    refused(lambda: load(path))


def test_what_is_honest_stays_allowed(tmp_path):
    (tmp_path / "r.yaml").write_bytes(
        b"\xef\xbb\xbfmodel: 2024-01-01\r\n"
        b"compress:\r\n"
        b"  overrides:\r\n"
        b"    '*.down_proj': &wide {format: q8_0, rank: !!int 8}\r\n"
        b"    '*.up_proj': *wide\r\n"
        b"    '*.gate_proj': {<<: *wide, rank: 0}\r\n"
        b"calibrate: {seed: 9223372036854775807, source: texts/\xc3\xbc.txt}\r\n"
        b"export: {name: my.model-1}\r\n"
    )
    recipe = load(tmp_path / "r.yaml")
    assert recipe.model == "2024-01-01"
    wide, same, other = recipe.compress.overrides.values()
    assert (wide.format, wide.rank, same) == ("q8_0", 8, wide)
    assert (other.format, other.rank) == ("q8_0", 0)
    assert recipe.calibrate.seed == MAX_SEED
