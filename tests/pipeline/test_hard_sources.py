"""Models and texts that a build has to refuse, or to get along with."""

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import edgepack
from edgepack.core.disk import root
from edgepack.errors import EdgepackError
from tests.support.tiny import make_model

pytest.importorskip("llama_cpp")

NAME = "model.layers.1.self_attn.q_proj.weight"
MEASURED = {"export": {"measure": {"tokens": 256, "context": 64}}}


def build(folder, recipe):
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": "m"} | MEASURED | recipe))
    return edgepack.build(folder / "recipe.yaml", "gguf", out=folder / "out")


@pytest.mark.slow
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named_before_any_work(tmp_path, compress, value):
    make_model(tmp_path / "m")
    path = tmp_path / "m/model.safetensors"
    tensors = load_file(path)
    tensors[NAME][3, 5] = value
    save_file(tensors, path)
    recipe = {"calibrate": {"tokens": 512}, "compress": {"format": "q4_0"}} if compress else {}
    with pytest.raises(EdgepackError, match=f"{NAME}: 1 of 4096 values") as caught:
        build(tmp_path, recipe)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not list(root().glob("*/calibrate*"))


@pytest.mark.slow
def test_a_text_with_fewer_directions_than_the_rank(tmp_path):
    """R then explains all of H, and what is left to weigh Q by is rounding noise."""
    make_model(tmp_path / "m", hidden=128, intermediate=256, dtype=torch.bfloat16)
    (tmp_path / "text.txt").write_text("the of and " * 600)
    recipe = {
        "calibrate": {"source": "text.txt", "tokens": 512, "sequence_length": 32},
        "compress": {"format": "q4_0", "rank": 48, "factors": "f16"},
    }
    weights = build(tmp_path, recipe).manifest["weights"]
    assert weights[NAME]["rank"] == 48
    assert all(one["error"] < 0.01 for name, one in weights.items() if "layers" in name)
