"""The pages that are made from the program are those of this program."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_help_page_is_current():
    spec = importlib.util.spec_from_file_location("make_help", DOCS / "make_help.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert (DOCS / "help.md").read_text() == maker.page(), "run: python docs/make_help.py"
