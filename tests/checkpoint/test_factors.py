"""Factors and soft caps read from a folder are those read from a GGUF of it."""

import pytest

from edgepack.checkpoint import open_checkpoint
from tests.support.tiny import make_model, write_gguf


@pytest.mark.parametrize("scale", [1.0, 0.25, 0.2])
def test_a_factor_of_one_is_none_only_where_one_is_usual(scale, tmp_path):
    """q·k times 1 is not q·k / √head_dim, and 0.25 is 1/√16."""
    make_model(tmp_path / "m", "granite", attention_multiplier=scale, embedding_multiplier=1.0)
    original = open_checkpoint("m", tmp_path)
    write_gguf(tmp_path / "m.gguf", original)
    again = open_checkpoint("m.gguf", tmp_path).dimensions
    assert again.score_scale == pytest.approx(scale)
    assert again == original.dimensions
