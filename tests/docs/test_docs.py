"""The pages that are made from the program are those of this program."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks import merging, onnx_peers, same_type, sizes, slicing, training_graph

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS_PAGE = DOCS / "results.md"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["help", "recipe", "models", "scale"])
def test_pages_made_by_the_program_are_current(name, monkeypatch):
    spec = importlib.util.spec_from_file_location(f"make_{name}", DOCS / f"make_{name}.py")
    maker = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, maker)  # dataclasses look there
    spec.loader.exec_module(maker)
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert page == maker.page(), f"run: python docs/make_{name}.py"


def test_the_readme_can_be_read_in_one_sitting_and_its_pages_are_there():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    named = {name for line in lines for name in re.findall(r"`(docs/[a-z]+\.md)`", line)}
    assert named == {f"docs/{path.name}" for path in DOCS.glob("*.md")}


def test_the_pages_show_the_figures_that_the_benchmark_made():
    rows = json.loads((same_type.RESULTS / "same_type.json").read_text())
    assert same_type.short_table(rows) in RESULTS_PAGE.read_text(encoding="utf-8")


def test_the_pages_show_the_sizes_that_the_comparison_made():
    points = json.loads((same_type.RESULTS / "sizes.json").read_text())
    assert sizes.table(points) in RESULTS_PAGE.read_text(encoding="utf-8")


def test_the_pages_show_the_slices_that_the_benchmark_made():
    rows = {r["row"]: r for r in json.loads((same_type.RESULTS / "slicing.json").read_text())}
    assert slicing.table(rows) in (DOCS / "slicing.md").read_text(encoding="utf-8")


def test_the_pages_show_the_training_graphs_that_the_benchmark_made():
    rows = json.loads((same_type.RESULTS / "training_graph.json").read_text())
    shown = "\n".join(training_graph.table(rows)[:-2])  # without the losses
    assert shown in (DOCS / "onnx.md").read_text(encoding="utf-8")


def test_the_pages_show_the_onnx_graphs_that_the_benchmark_made():
    rows = json.loads((same_type.RESULTS / "onnx_peers.json").read_text())
    assert "\n".join(onnx_peers.table(rows)) in (DOCS / "onnx.md").read_text(encoding="utf-8")


def test_the_pages_show_the_merges_that_the_benchmark_made():
    found = json.loads((same_type.RESULTS / "merging.json").read_text())
    page = (DOCS / "adapters.md").read_text(encoding="utf-8")
    assert merging.kl_table(found["rows"]) in page
    assert merging.speed_table(found["speed"]) in page
