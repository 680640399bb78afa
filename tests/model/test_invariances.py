"""Padding and rotation leave a model's function alone, in torch and in llama.cpp."""

import json

import pytest
import torch

import edgepack
from edgepack.checkpoint import open_checkpoint
from edgepack.core.hadamard import hadamard
from edgepack.errors import RecipeError
from edgepack.model.decoder import Decoder
from edgepack.model.padding import Padded, pad
from edgepack.model.rotation import Rotated
from tests.support.tiny import PADDED, SQUARE, make_model, write_gguf

CHANGES = {
    "padded": lambda checkpoint: pad(checkpoint, 256),
    "rotated": Rotated,
    "both": lambda checkpoint: pad(Rotated(checkpoint), 256),
}


@pytest.fixture(scope="module", params=PADDED, ids=str)
def checkpoint(request, tmp_path_factory):
    family, tied = request.param
    folder = tmp_path_factory.mktemp("models") / "made"
    head_dim = 16 if family in SQUARE else 32
    make_model(folder, family, tied=tied, head_dim=head_dim)
    return open_checkpoint(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_logits_stay(checkpoint, change):
    changed = CHANGES[change](checkpoint)
    tokens = torch.arange(3, 67).view(2, 32)
    wanted, got = Decoder(checkpoint).logits(tokens), Decoder(changed).logits(tokens)
    assert (got - wanted).abs().max() < 1e-4 * wanted.std()
    assert changed.original is checkpoint
    assert changed.key != checkpoint.key
    for name, spec in changed.specs.items():
        assert changed.tensor(name).shape == spec.shape
        if change != "rotated" and len(spec.shape) == 2:
            assert spec.shape[1] % 256 == 0


@pytest.mark.slow
@pytest.mark.llama
def test_llama_cpp_computes_the_same_logits(checkpoint, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    ids = list(range(3, 40))
    logits = []
    for number, given in enumerate((checkpoint, CHANGES["both"](checkpoint))):
        path = tmp_path / f"{number}.gguf"
        write_gguf(path, given)
        runtime = llama_cpp.Llama(str(path), logits_all=True, n_ctx=64, n_threads=1, verbose=False)
        runtime.eval(ids)
        logits.append(torch.tensor(runtime.scores[: len(ids)]))
        runtime.close()
    assert (logits[1] - logits[0]).abs().max() < 0.02 * logits[0].std()


@pytest.mark.slow
def test_heads_are_added_where_that_is_cheapest(tmp_path):
    """SmolLM2's 9 heads in 3 groups become 12 in 3: keys and values do not grow."""
    make_model(tmp_path, hidden=576, heads=9, kv_heads=3, head_dim=64, intermediate=1536, layers=1)
    original = open_checkpoint(str(tmp_path))
    padded = pad(original, 256)
    assert isinstance(padded, Padded)
    d = padded.dimensions
    assert (d.hidden_size, d.num_attention_heads, d.num_key_value_heads) == (768, 12, 3)
    assert padded.describe().startswith("hidden width 576 → 768, heads 9 → 12: ")
    tokens = torch.arange(5, 37)[None]
    wanted, got = Decoder(original).logits(tokens), Decoder(padded).logits(tokens)
    assert (got - wanted).abs().max() < 1e-4 * wanted.std()
    assert pad(padded, 256) is padded


def test_qwen2_stays_as_wide_as_its_heads(tmp_path):
    """15 heads of 16 in 5 groups: 16 would do for 256 columns, but 20 is the next 5 × n, n ≥ 3."""
    make_model(tmp_path, "qwen2", hidden=240, heads=15, kv_heads=5, head_dim=16, layers=1)
    original = open_checkpoint(str(tmp_path))
    padded = pad(original, 64)
    assert (padded.dimensions.hidden_size, padded.dimensions.num_attention_heads) == (320, 20)
    tokens = torch.arange(5, 37)[None]
    wanted, got = Decoder(original).logits(tokens), Decoder(padded).logits(tokens)
    assert (got - wanted).abs().max() < 1e-4 * wanted.std()


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 4, 12, 20, 24, 28, 36, 44, 64, 128, 576, 896, 960, 1152])
def test_hadamard(n):
    H = hadamard(n)
    assert torch.allclose(H @ H.T, torch.eye(n, dtype=H.dtype), atol=1e-12)
    assert torch.allclose(H.abs(), torch.full_like(H, n**-0.5))


@pytest.mark.parametrize("n", [3, 6, 18, 30, 52])
def test_no_hadamard(n):
    with pytest.raises(RecipeError, match=f"{n} columns"):
        hadamard(n)


def test_rotation_spreads_what_stands_out(tmp_path):
    """A loud gain makes loud columns in everything that reads behind it; rotated, none is."""
    model = make_model(tmp_path, tied=False, hidden=128, heads=4)
    model.model.layers[0].input_layernorm.weight.data[7] = 40.0
    model.save_pretrained(tmp_path)
    original = open_checkpoint(str(tmp_path))
    name, gain = (f"model.layers.0.{n}.weight" for n in ("self_attn.q_proj", "input_layernorm"))
    folded = original.tensor(name) * original.tensor(gain)
    loud, even = (W.square().mean(0) for W in (folded, Rotated(original).tensor(name)))
    assert loud.max() > 100 * loud.median()
    assert even.max() < 3 * even.median()


@pytest.mark.slow
@pytest.mark.llama
def test_a_padded_model_takes_a_type_of_256_columns(tmp_path):
    pytest.importorskip("llama_cpp")
    make_model(tmp_path / "model", layers=2)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 400)
    given = {
        "model": "model",
        "calibrate": {"source": "text.txt", "tokens": 512, "sequence_length": 64},
        "compress": {"damping": [0.1], "format": "q6_k", "pad_width": 256, "rotate": "hadamard"},
        "export": {"measure": {"text": "text.txt", "tokens": 256, "context": 64, "stock": False}},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(given))
    made = edgepack.plan(path)
    assert any("hidden width 64 → 256" in warning for warning in made.warnings)
    assert any("head is tied" in warning for warning in made.warnings)
    plain = dict(given, compress={"format": "q8_0"})
    path.write_text(json.dumps(plain))
    ratio = made.bits_per_weight(blocks_only=True) / edgepack.plan(path).bits_per_weight(
        blocks_only=True
    )
    assert ratio > 4  # the zeros are stored, and are not weights
    path.write_text(json.dumps(given))
    artifact = edgepack.build(path, out=tmp_path / "out")
    assert artifact.manifest["model"]["pad_width"] == 256
    assert artifact.manifest["model"]["rotate"] == "hadamard"
    results = artifact.manifest["measured"]["results"]["edgepack"]
    assert results["kl_mean"] < 0.02


@pytest.mark.parametrize(("key", "value"), [("pad_width", 100), ("rotate", "random")])
def test_bad_values_are_named(tmp_path, key, value):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"model": "model", "compress": {key: value}}))
    with pytest.raises(RecipeError, match=f"compress.{key}"):
        edgepack.plan(path)
