"""Models of 140 GB are planned from headers: files with holes stand for them."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

import edgepack
from edgepack.report.show import plan_facts
from tests.support.shapes import LLAMA_70B, write_sparse

SMALL_VOCABULARY = 2000
READ = 64 << 20
"""Most bytes that planning may read. The checkpoint has 137 GB."""


def write_recipe(folder: Path) -> Path:
    (folder / "text.txt").write_text("The quick brown fox. " * 2000)
    content = {
        "model": "model",
        "calibrate": {"source": "text.txt", "tokens": 4096, "sequence_length": 256},
        "compress": {"bits_per_weight": 3.5},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(content))
    return path


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    write_sparse(folder / "model", replace(LLAMA_70B, vocab=SMALL_VOCABULARY))
    return write_recipe(folder)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes as Linux does")
def test_a_plan_reads_headers_of_140_GB_and_no_more(recipe):
    size = sum(path.stat().st_size for path in (recipe.parent / "model").iterdir())
    assert size > 130e9
    before = bytes_read()
    plan = edgepack.plan(recipe)
    facts = plan_facts(plan)
    assert bytes_read() - before < READ
    assert facts["parameters"] == pytest.approx(68.5e9, rel=0.01)
    assert facts["bits_per_weight"]["all"] == pytest.approx(3.5, rel=0.01)
    assert {stage["key"] for stage in facts["stages"]} == {None}
    assert not any(stage["cached"] or stage["begun"] for stage in facts["stages"])


def test_a_plan_says_that_the_original_as_float16_has_no_room(recipe):
    """137 GB of disk and memory: whatever this machine has less of is named, with the way out."""
    warnings = plan_facts(edgepack.plan(recipe))["warnings"]
    notes = [line for line in warnings if "original as float16" in line]
    assert len(notes) == 1
    assert "reference: streamed" in notes[0]


def test_keys_follow_the_content_once_it_is_read(tmp_path):
    """A small part of the shape, so that hashing takes a moment."""
    shape = replace(LLAMA_70B, layers=1, hidden=512, intermediate=4096, heads=8, shards=1)
    write_sparse(tmp_path / "model", replace(shape, vocab=SMALL_VOCABULARY), real=[0])
    path = write_recipe(tmp_path)
    (weights,) = (tmp_path / "model").glob("*.safetensors")
    plan = edgepack.plan(path)
    assert plan_facts(plan)["stages"][0]["key"] is None
    assert "files" not in plan_facts(plan)["model"]
    keys = [stage.key for stage in plan.stages]  # hashes
    assert [stage["key"] for stage in plan_facts(plan)["stages"]] == keys
    assert weights.name in plan_facts(plan)["model"]["files"]
    with weights.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\x01\x02")
    changed = [stage.key for stage in edgepack.plan(path).stages]
    assert not set(changed) & set(keys)
