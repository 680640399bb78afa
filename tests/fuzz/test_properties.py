"""What must hold for every input of a kind: recipes and merges that the schema accepts, and files
of our own, written and read again. More of each: EXAMPLES=2000."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgepack
from edgepack.bench.protocol import Case, Multiply, ReadMemory, RunModel, read_job
from edgepack.checkpoint import open_checkpoint
from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.core import adapters
from edgepack.core.untrusted import whole_number
from edgepack.core.weight_files import load_tensors, save_tensors
from edgepack.errors import EdgepackError, RecipeError
from edgepack.merge.documents import check_merges
from edgepack.recipe import plain_yaml, references
from edgepack.recipe.read import load_merges, parse
from tests.fuzz.case import ROWS, SMALL
from tests.fuzz.harness import LINE
from tests.fuzz.strategies import PLAIN, STOCK, merges, plain_values, recipes, texts
from tests.support.fine_tunes import make_adapter
from tests.support.tiny import CHAT, TEXT, make_model, write_gguf

EXAMPLES = int(os.environ.get("EXAMPLES", "25"))
every = settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES == 25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
"""Of what takes a while; the same inputs each time, so that a test fails today or not at all."""
many = settings(every, max_examples=4 * EXAMPLES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, an adapter and texts by the names that `strategies` knows."""
    place = tmp_path_factory.mktemp("properties")
    make_model(place / "m", **SMALL)
    (place / "m/chat_template.jinja").write_text(CHAT)
    make_model(place / "n", seed=1, **SMALL)
    make_adapter(place / "m", place / "peft")
    write_gguf(place / "m.gguf", open_checkpoint("m", place), "F32")
    (place / "text.txt").write_text("\n".join(TEXT * 20))
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (place / "chats.jsonl").write_text(lines * 20)
    (place / "few.jsonl").write_text(lines)
    (place / "few.json").write_text(json.dumps(ROWS))
    return place


def refuses_well(error: EdgepackError) -> None:
    """One line of bounded length, and what to do."""
    assert "\n" not in error.message, error.message
    assert len(error.message) <= LINE, error.message
    assert error.hint, error.message


# ---------------------------------------------------------------------------- what people write


@pytest.mark.slow
@every
@given(recipe=recipes(), target=st.sampled_from(["gguf", "onnx", "checkpoint"]))
def test_any_recipe_of_the_schema_plans_or_is_refused_in_one_line(folder, recipe, target):
    (folder / "r.yaml").write_text(json.dumps(recipe))
    try:
        edgepack.plan(folder / "r.yaml", target)
    except EdgepackError as error:
        refuses_well(error)


@pytest.mark.slow
@every
@given(documents=merges())
def test_any_merge_of_the_schema_is_checked_or_refused_in_one_line(folder, documents):
    path = folder / "merge.yaml"
    path.write_text("\n---\n".join(map(json.dumps, documents)))
    try:
        for _, found in check_merges(load_merges(path), folder):
            found.lines()
            found.require()
    except EdgepackError as error:
        refuses_well(error)


@many
@given(recipe=recipes())
def test_a_recipe_is_the_same_once_it_was_written(recipe):
    try:
        first = parse(recipe)
    except RecipeError:
        return
    written = first.model_dump(mode="json", exclude_unset=True)
    assert parse(plain_yaml.parse(yaml.safe_dump(written), "r")) == first


# ---------------------------------------------------------------------------- written, then read


@many
@given(value=plain_values())
def test_yaml_means_what_pyyaml_writes(value):
    text = yaml.safe_dump(value, allow_unicode=True)
    assert plain_yaml.parse(text, "r") == value


@many
@given(text=texts())
def test_any_text_is_yaml_or_refused_in_one_line(text):
    try:
        plain_yaml.parse_all(text, "r")
    except EdgepackError as error:
        refuses_well(error)


@many
@given(model=PLAIN, lora=st.none() | PLAIN)
def test_a_reference_is_its_text(model, lora):
    try:
        first = references.parse({"model": model, "lora": lora})
    except ValueError:
        return
    if "+" not in f"{model}{lora}":
        assert references.parse(str(first)) == first


@many
@given(
    keys=st.dictionaries(
        st.from_regex(r"[a-z][a-z.]{0,20}", fullmatch=True),
        texts()
        | st.integers(-(2**63), 2**63 - 1)
        | st.booleans()
        | st.lists(texts(), min_size=1, max_size=3),
        max_size=5,
    )
)
def test_our_header_of_a_gguf_is_what_ggufs_writer_wrote(tmp_path_factory, keys):
    import gguf

    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    add = {str: writer.add_string, bool: writer.add_bool, list: writer.add_array}
    for key, value in keys.items():
        add.get(type(value), writer.add_int64)(f"k.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = {key: entry[0] for key, entry in GgufHeader(path).metadata.items()}
    assert {
        f"k.{key}": value for key, value in keys.items() if value != ""
    }.items() <= found.items()
    shutil.rmtree(path.parent)


@every
@given(
    shapes=st.dictionaries(PLAIN, st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4),
    about=plain_values(),
)
def test_a_file_of_the_cache_is_what_was_saved(tmp_path_factory, shapes, about):
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    tensors = {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))
        for name, shape in shapes.items()
    }
    save_tensors(path, tensors, about)
    found, told = load_tensors(path)
    assert told == about
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    shutil.rmtree(path.parent)


_counts = st.integers(1, 10**6)
_cases = st.builds(
    Case, kind=st.sampled_from(["prompt", "decode"]), tokens=_counts, depth=_counts, batch=_counts
)


@many
@given(
    job=st.builds(
        RunModel,
        model=texts(),
        adapters=st.lists(st.tuples(texts(), st.floats(-9, 9)), max_size=2).map(tuple),
        threads=_counts,
        cases=st.lists(_cases, max_size=3).map(tuple),
    )
    | st.builds(ReadMemory, threads=st.lists(_counts).map(tuple))
    | st.builds(Multiply, threads=_counts, types=st.lists(STOCK).map(tuple))
)
def test_a_job_arrives_as_it_was_sent(job):
    assert read_job(job.model_dump_json()) == job


@every
@given(
    about=st.dictionaries(PLAIN, plain_values(), max_size=3),
    ranks=st.dictionaries(PLAIN, st.integers(0, 64), max_size=3),
    content=st.binary(max_size=64),
)
def test_an_adapter_says_of_itself_what_was_written(tmp_path_factory, about, ranks, content):
    folder = tmp_path_factory.mktemp("adapter")
    (folder / "adapter.gguf").write_bytes(content)
    described = {
        "base": {"name": "m", "digest": "0" * 64},
        "mode": "stack",
        "ranks": ranks,
        "about": about,
    }
    adapters.write_about(folder, described, {"adapter.gguf": folder / "adapter.gguf"})
    found = adapters.read_about(folder)
    adapters.check_files(folder, found)
    assert (found.ranks, found.about) == (ranks, about)
    (folder / "adapter.gguf").write_bytes(content + b"x")
    with pytest.raises(EdgepackError, match="is not the file that it describes"):
        adapters.check_files(folder, found)
    shutil.rmtree(folder)


@many
@given(text=texts() | st.text("0123456789²٣-+. _", max_size=30))
def test_a_whole_number_is_ascii_digits_and_nothing_else(text):
    found = whole_number(text)
    is_one = 0 < len(text) <= 18 and set(text) <= set("0123456789")
    assert found == (int(text) if is_one else None)
