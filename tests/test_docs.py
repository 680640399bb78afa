"""The pages that are made from the program are those of this program."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from benchmarks import onnx_peers, same_type, sizes, slicing

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_help_page_is_current():
    spec = importlib.util.spec_from_file_location("make_help", DOCS / "make_help.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert (DOCS / "help.md").read_text() == maker.page(), "run: python docs/make_help.py"


def test_the_readme_shows_the_figures_that_the_benchmark_made():
    rows = json.loads((same_type.RESULTS / "same_type.json").read_text())
    assert same_type.short_table(rows) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_the_sizes_that_the_comparison_made():
    points = json.loads((same_type.RESULTS / "sizes.json").read_text())
    assert sizes.table(points) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_the_slices_that_the_benchmark_made():
    rows = {r["row"]: r for r in json.loads((same_type.RESULTS / "slicing.json").read_text())}
    assert slicing.table(rows) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_the_onnx_graphs_that_the_benchmark_made():
    rows = json.loads((same_type.RESULTS / "onnx_peers.json").read_text())
    assert "\n".join(onnx_peers.table(rows)) in (ROOT / "README.md").read_text(encoding="utf-8")
