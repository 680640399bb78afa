"""llama.cpp computes with every type what our dequantization says, in one file of them all."""

from itertools import cycle

import pytest

from edgepack.architectures.base import LINEAR_ROLES
from edgepack.checkpoint import open_checkpoint
from edgepack.core.weights import FactoredWeight
from edgepack.export.gguf import write_model
from edgepack.formats import stock
from tests.support.ggufs import INT8, distance, expected, in_llama_cpp, q_of, quantize
from tests.support.tiny import make_model


@pytest.mark.slow
@pytest.mark.llama
def test_a_model_of_all_types_has_the_logits_of_its_dequantized_weights(tmp_path):
    names = stock()
    layers = -(-len(names) // 7)  # weights of a block
    made = make_model(tmp_path / "hf", hidden=256, intermediate=512, layers=layers)
    model = type(made).from_pretrained(tmp_path / "hf").float().eval()
    checkpoint = open_checkpoint(str(tmp_path / "hf"))
    turn, weights = cycle(names), {}
    for spec in checkpoint.specs.values():
        if len(spec.shape) == 2:
            name = next(turn) if spec.role in LINEAR_ROLES else "q8_0"
            weights[spec.name] = FactoredWeight(quantize(name, checkpoint.tensor(spec.name)))
    formats = {name: weight.Q.format for name, weight in weights.items()}
    assert set(formats.values()) == set(names)
    write_model(tmp_path / "base.gguf", checkpoint, formats, q_of(weights))
    found = in_llama_cpp(tmp_path / "base.gguf")
    assert distance(found, expected(model, weights)) < INT8
    assert distance(found, expected(model)) > 5 * INT8
