"""Every family: a checkpoint reads what transformers wrote, and a GGUF of it reads the same."""

import dataclasses
import itertools

import pytest
import torch

from edgepack.checkpoint import open_checkpoint
from edgepack.checkpoint.save import SIZES
from edgepack.core import plugins
from tests.support.tiny import FAMILIES, SQUARE, make_model, write_gguf

CASES = [
    (family, tied)
    for family, tied in itertools.product(FAMILIES, [True, False])
    if plugins.find("architectures", family).head != ("untied" if tied else "tied")
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def made(request, tmp_path_factory):
    family, tied = request.param
    folder = tmp_path_factory.mktemp("models") / "made"  # llama.cpp reads meaning into names
    head_dim = 16 if family in SQUARE else 32
    return folder, make_model(folder, family, tied=tied, head_dim=head_dim), tied


def experts(family, prefix, stored, value):
    """The weights of a stack, as transformers' files have them: each of its own."""
    kinds = ("gate", "up") if "gate_up" in stored else ("down",)
    parts = zip(kinds, value.chunk(len(kinds), dim=1), strict=True)
    return {
        f"{prefix}.{family.block[f'ffn_{kind}_exps']}".format(expert=i): W
        for kind, stack in parts
        for i, W in enumerate(stack)
    }


def parameters(model, tied):
    """What a checkpoint gives: gains as they multiply, weights that are stored together apart."""
    family = plugins.find("architectures", model.config.model_type)
    found = {}
    for name, value in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        value = value.float() + (family.norm_shift if name.endswith("norm.weight") else 0)
        prefix, stored = name, ""
        if name.startswith("model.layers."):
            prefix, stored = name.rsplit(".", name.count(".") - 2)[0], name.split(".", 3)[3]
        if ".experts." in name:
            found |= experts(family, prefix, stored, value)
            continue
        roles = family.stored.get(stored, ())
        parts = value.chunk(len(roles)) if roles else ()
        found |= {f"{prefix}.{family.block[r]}": v for r, v in zip(roles, parts, strict=True)}
        found |= {} if roles else {name: value}
    return found


@pytest.mark.slow
def test_names_shapes_and_tensors_are_those_of_transformers(made):
    folder, model, tied = made
    if plugins.find("architectures", model.config.model_type).kind_roles:
        pytest.skip("stored in another order: tests/contracts/test_mixers.py")
    checkpoint, wanted = open_checkpoint(str(folder)), parameters(model, tied)
    assert {n: tuple(v.shape) for n, v in wanted.items()} == {
        n: spec.shape for n, spec in checkpoint.specs.items()
    }
    for name, value in wanted.items():
        assert torch.equal(checkpoint.tensor(name), value), name
        buffer = name.endswith("expert_bias")
        assert checkpoint.specs[name].dtype == ("F32" if buffer else "BF16")
        assert checkpoint.quantized(name) is None


@pytest.mark.slow
def test_dimensions_are_those_of_the_configuration(made):
    folder, model, tied = made
    checkpoint, config = open_checkpoint(str(folder)), model.config
    dims, family = checkpoint.dimensions, checkpoint.architecture
    for name in SIZES:
        wanted = getattr(config, family.renamed.get(name, name), None)
        assert getattr(dims, name) == wanted or (name == "head_dim" and wanted is None)
    rope = config.rope_parameters
    assert dims.rope_theta == rope.get("full_attention", rope)["rope_theta"]
    kind = rope.get("full_attention", rope).get("rope_type", "default")
    assert (dims.rope_scaling is None) == (kind == "default")
    window = family.mixed or family.window == "all"
    assert dims.sliding_window == (getattr(config, "sliding_window", None) if window else None)
    assert dims.tie_word_embeddings is tied
    assert dims.partial_rotary_factor == rope.get("partial_rotary_factor", 1.0)


@pytest.mark.slow
def test_a_gguf_reads_as_the_folder_it_was_made_from(made, tmp_path):
    folder, _, _ = made
    original = open_checkpoint(str(folder))
    write_gguf(tmp_path / "model.gguf", original)
    again = open_checkpoint("model.gguf", tmp_path)
    assert again.architecture.gguf == original.architecture.gguf
    window = original.dimensions.sliding_window if again.architecture.mixed else None
    assert again.dimensions == dataclasses.replace(original.dimensions, sliding_window=window)
    assert set(again.specs) == set(original.specs)
    for name, spec in original.specs.items():
        assert again.specs[name] == dataclasses.replace(spec, dtype="F32")
        assert torch.equal(again.tensor(name), original.tensor(name)), name
    text = "It's 1969: où naît la 狐?\n\n  <|im_end|>"
    assert again.tokenizer.encode(text) == original.tokenizer.encode(text)


@pytest.mark.slow
def test_llama_cpp_computes_the_same_logits(made, tmp_path):
    """The end of the chain: rotary order, head size and biases as the runtime understands them."""
    llama_cpp = pytest.importorskip("llama_cpp")
    folder, model, _ = made
    write_gguf(tmp_path / "model.gguf", open_checkpoint(str(folder)))
    ids = list(range(3, 40))
    runtime = llama_cpp.Llama(
        str(tmp_path / "model.gguf"), logits_all=True, n_ctx=64, n_threads=1, verbose=False
    )
    runtime.eval(ids)
    got = torch.tensor(runtime.scores[: len(ids)])
    runtime.close()
    with torch.no_grad():
        wanted = model.float()(torch.tensor([ids])).logits[0]
    model.bfloat16()
    assert wanted.std() > 0.5
    assert (got - wanted).abs().max() < 0.05 * wanted.std()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_shards_make_no_difference(family, tmp_path):
    for count in (1, 3):
        make_model(tmp_path / str(count), family, shards=count, tied=False)
    whole, split = (open_checkpoint(name, tmp_path) for name in ("1", "3"))
    assert len(list((tmp_path / "3").glob("*.safetensors"))) >= 3
    assert whole.specs == split.specs
    for name in whole.specs:
        assert torch.equal(whole.tensor(name), split.tensor(name))
