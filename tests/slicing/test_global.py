"""Slicing by one rotation: exact where nothing is left out, RMSNorm over the original width where
something is, and an ordinary model for transformers and llama.cpp."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

import edgepack
from edgepack.architectures.base import NORMS, WRITE
from edgepack.checkpoint import open_checkpoint
from edgepack.core.weight_files import load_tensors
from edgepack.model.decoder import Decoder
from edgepack.model.places import kept_width
from edgepack.model.rewritten import Rewritten
from edgepack.recipe.sections import Slice
from edgepack.slicing import stage
from edgepack.slicing.basis import orient, principal_directions
from tests.support.commands import run
from tests.support.dying import survives
from tests.support.slices import HIDDEN, IDS, NARROW, recipe, says
from tests.support.tiny import SLICED, make_model, write_gguf


@pytest.fixture(params=SLICED, ids=str)
def dense(request, tmp_path):
    """A model of every family; head_dim is not the hidden size divided by the heads."""
    family, tied = request.param
    head_dim = 16 if family == "qwen2" else 24
    make_model(tmp_path / "model", family, tied=tied, head_dim=head_dim, dtype=torch.float32)
    return open_checkpoint(str(tmp_path / "model"))


def sliced(dense, width: int, **options):
    return edgepack.plan(recipe(dense.folder.parent, width, **options), "checkpoint")


def build(dense, width: int, **options) -> Path:
    out = dense.folder.parent / f"out-{width}"
    edgepack.build(recipe(dense.folder.parent, width, **options), "checkpoint", out=out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("orientation", ["pca", "random", "hadamard"])
def test_all_columns_kept_is_the_same_model(dense, orientation):
    out = open_checkpoint(str(build(dense, HIDDEN, orientation=orientation)))
    wanted, got = Decoder(dense).logits(IDS), Decoder(out).logits(IDS)
    assert (got - wanted).abs().max() < 1e-4
    assert not torch.allclose(out.tensor(EMBEDDING), dense.tensor(EMBEDDING), atol=0.01)


EMBEDDING = "model.embed_tokens.weight"


class Emptied(Rewritten):
    """The dense model rotated by Q, with all coordinates behind the first d set to zero: what
    SliceGPT computes with its RMSNorm over the original width."""

    def __init__(self, original, Q, d):
        dimensions = replace(original.dimensions, tie_word_embeddings=False)
        head = replace(original.specs[EMBEDDING], name="lm_head.weight", role="output")
        specs = {**original.specs, head.name: head}
        super().__init__(original, dimensions, specs, {})
        self.R = Q.clone()
        self.R[:, d:] = 0

    def tensor(self, name):
        spec = self.specs[name]
        W = self.base.tensor(name if name in self.base.specs else EMBEDDING).double()
        if spec.role in NORMS:
            W = torch.ones_like(W)
        elif norm := self.architecture.read_behind.get(spec.role):
            gain = self.architecture.hf_name(norm, spec.block)
            W = W * self.base.tensor(gain).double() @ self.R
        elif spec.role in WRITE:
            W = self.R.T @ W
        elif spec.role == "token_embd":
            W = W @ self.R
        return W.float()


@pytest.mark.slow
def test_fewer_columns_are_the_norms_of_the_original_width(dense):
    made = sliced(dense, NARROW)
    out = open_checkpoint(str(build(dense, NARROW)))
    assert out.dimensions.hidden_size == NARROW
    Q = load_tensors(made.find(stage.Slice).folder / "basis.safetensors")[0]["Q"]
    whole = torch.linalg.qr(torch.cat([Q, torch.randn(HIDDEN, NARROW).double()], 1)).Q
    whole[:, :NARROW] = Q
    wanted = Decoder(Emptied(dense, whole, NARROW)).logits(IDS)
    got = Decoder(out).logits(IDS)
    assert (got - wanted).abs().max() < 1e-4
    assert (got - Decoder(dense).logits(IDS)).abs().max() > 0.1  # something was left out


@pytest.mark.slow
def test_transformers_and_llama_cpp_compute_the_same(dense, tmp_path):
    """3 heads of 4 do not divide 40 columns: what transformers' Llama refuses."""
    out = build(dense, 40)
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        wanted = model(IDS).logits
    narrow = sliced(dense, 40).model
    got = Decoder(narrow).logits(IDS)
    assert (got - wanted).abs().max() < 1e-3
    llama_cpp = pytest.importorskip("llama_cpp")
    write_gguf(tmp_path / "narrow.gguf", narrow)
    runtime = llama_cpp.Llama(
        str(tmp_path / "narrow.gguf"), logits_all=True, n_ctx=64, n_threads=1, verbose=False
    )
    runtime.eval(IDS[0].tolist())
    scores = torch.tensor(runtime.scores[: IDS.shape[1]])
    runtime.close()
    assert (scores - wanted[0]).abs().max() < 0.02 * wanted.std()


@pytest.mark.slow
def test_heads_that_do_not_divide_the_width_load_as_a_sibling(tmp_path):
    for family, sibling in (("llama", "mistral"), ("qwen3", "qwen3")):
        make_model(tmp_path / family / "model", family, hidden=48, heads=3, kv_heads=3, head_dim=16)
        dense = open_checkpoint(str(tmp_path / family / "model"))
        out = build(dense, 40)
        config = json.loads((out / "config.json").read_text())
        assert (config["model_type"], config["head_dim"]) == (sibling, 16)
        assert transformers.AutoModelForCausalLM.from_pretrained(out).config.hidden_size == 40


def test_the_directions_are_those_of_most_energy():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(500, 8, generator=generator).double() * torch.arange(8, 0, -1)
    Q = principal_directions(X.T @ X)
    energy = (X @ Q).square().sum(0)
    assert (energy[:-1] >= energy[1:]).all()
    assert torch.allclose(Q.T @ Q, torch.eye(8).double(), atol=1e-12)
    for orientation in ("pca", "random", "hadamard"):
        kept = orient(Q, 4, orientation, 0)
        assert torch.allclose(kept @ kept.T, Q[:, :4] @ Q[:, :4].T, atol=1e-12)
        same = torch.allclose(kept, Q[:, :4])
        assert same == (orientation == "pca")


@pytest.mark.parametrize(
    ("sparsity", "round_to", "width"),
    [(0.25, 256, 768), (0.25, 8, 672), (0.9, 256, 256), (0, 8, 896)],
)
def test_sparsity_goes_to_whole_blocks(sparsity, round_to, width):
    options = Slice(sparsity=sparsity, round_to=round_to)
    assert kept_width(896, options) == width


@pytest.mark.slow
def test_a_model_that_would_grow_is_refused(tmp_path, monkeypatch):
    make_model(tmp_path / "model", tied=True, vocab=600)
    path = recipe(tmp_path, 56, allow_growth=False)
    monkeypatch.chdir(tmp_path)
    message = says("plan", path)
    assert "the model would grow to" in message
    assert "the head can no longer be the embeddings" in message
    assert "allow_growth" in message
    assert "sliced as f16" in run("plan", recipe(tmp_path, NARROW)).stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 4096}, "slice.width: 4096 is more than the 64 columns"),
        ({"width": 40, "sparsity": 0.25}, "one of width, sparsity and schedule"),
        ({"width": 40, "orientation": "hadamard"}, ""),
        ({"width": 44, "orientation": "hadamard"}, ""),
        ({"width": 46, "orientation": "hadamard"}, "no Hadamard matrix of 46 columns"),
    ],
)
def test_what_cannot_be_sliced_is_said_while_planning(tmp_path, options, said):
    make_model(tmp_path / "model", tied=False)
    path = recipe(tmp_path, **options)
    assert said in (says("plan", path) if said else run("plan", path).stdout)


@pytest.mark.slow
def test_slicing_composes_with_compression(tmp_path):
    """Sliced to 256 columns, a model takes K-quants that its own 288 do not."""
    make_model(tmp_path / "model", hidden=288, heads=4, head_dim=64, intermediate=512, tied=False)
    path = recipe(tmp_path, 256)
    given = json.loads(path.read_text())
    given["compress"] = {"format": "q4_k", "embeddings": "q6_k", "damping": [0.1]}
    given["export"]["measure"] = {"tokens": 128, "context": 64}
    path.write_text(json.dumps(given))
    artifact = edgepack.build(path, out=tmp_path / "out")
    manifest = artifact.manifest
    vocab = open_checkpoint(str(tmp_path / "model")).dimensions.vocab_size
    assert {w["formats"]["Q"] for n, w in manifest["weights"].items() if ".layers." in n} == {
        "q4_k"
    }
    stages = ["check", "slice", "calibrate", "decompose", "export", "measure"]
    assert list(manifest["stages"]) == stages
    assert manifest["slice"]["head"] == (vocab * 288, vocab * 256)
    assert 4.5 <= manifest["bits_per_weight"]["blocks"] < 4.6
    assert "stock q4_k + imatrix of the slice" in manifest["measured"]["results"]
    report = (tmp_path / "out/report.md").read_text()
    assert "slice: global, width 256" in report
    given["slice"]["width"] = 288
    path.write_text(json.dumps(given))
    assert "not a multiple of the 256" in says("plan", path)


@pytest.mark.slow
def test_a_killed_slice_goes_on(tmp_path, monkeypatch):
    make_model(tmp_path / "model", tied=False, dtype=torch.float32)
    path = recipe(tmp_path, NARROW)

    def work(cache: str) -> None:
        monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / cache))
        edgepack.build(path, "checkpoint", out=tmp_path / "out", force=True)

    survives(work, tmp_path / "out", first=1, step=2)


@pytest.mark.slow
def test_a_checkpoint_is_not_compressed(tmp_path):
    make_model(tmp_path / "model", tied=False)
    path = recipe(tmp_path, NARROW)
    given = json.loads(path.read_text()) | {"compress": {"format": "q8_0"}}
    path.write_text(json.dumps(given))
    assert "compress: a checkpoint is written before" in says(
        "build", path, "--target", "checkpoint"
    )
    out = tmp_path / "out"
    edgepack.build(recipe(tmp_path, NARROW), "checkpoint", out=out)
    assert "is no model for a runtime" in says("chat", out, "--prompt", "x")
    assert "name it as `model:`" in says("evaluate", out, "--text", tmp_path / "text.txt")
