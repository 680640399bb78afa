"""SliceGPT as published: exact where nothing is left out, its own basis at every place, loadable by
transformers."""

import json
from pathlib import Path

import pytest
import torch
import transformers

import edgepack
from edgepack.checkpoint import open_checkpoint
from edgepack.core import plugins
from edgepack.errors import RecipeError
from edgepack.model.centered import center
from edgepack.model.decoder import Decoder
from edgepack.model.places import kept_widths
from edgepack.model.sliced import has_code
from edgepack.recipe.sections import Slice
from edgepack.slicing import stage
from tests.support.dying import survives
from tests.support.slices import HIDDEN, IDS, recipe, says
from tests.support.tiny import LAYER_NORM, TIES, make_model

GATED = [(f, tied) for f, tied in TIES if has_code(plugins.find("architectures", f))]


@pytest.fixture(params=[*GATED, *((f, t) for f in LAYER_NORM for t in (True, False))], ids=str)
def dense(request, tmp_path):
    family, tied = request.param
    make_model(tmp_path / "model", family, tied=tied, head_dim=24, dtype=torch.float32)
    return open_checkpoint(str(tmp_path / "model"))


def build(dense, **options) -> Path:
    """The checkpoint that a recipe makes of a model."""
    folder = dense.folder.parent
    path = recipe(folder, method="per_block", **options)
    edgepack.build(path, "checkpoint", out=folder / "out")
    return folder / "out"


def load(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    return load(folder)(IDS).logits


@pytest.mark.slow
def test_all_columns_kept_is_the_same_model(dense):
    wanted = Decoder(dense).logits(IDS)
    got = logits(build(dense, sparsity=0.0))
    assert (got - wanted).abs().max() < 1e-4


@torch.no_grad()
def published(model, tokens, width):
    """Algorithm 1 of the paper on a transformers model of float64, gains folded, raw covariance:
    the logits of `IDS` in the sliced model. Written from the paper, with hooks on modules."""
    D = model.config.hidden_size
    model = model.double()
    inner = model.model

    def fold(norm, readers):
        for reader in readers:
            reader.weight.data = reader.weight.data * norm.weight.data
        norm.weight.data.fill_(1.0)

    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.data.clone())
    fold(inner.norm, [model.lm_head])
    for layer in inner.layers:
        a, m = layer.self_attn, layer.mlp
        fold(layer.input_layernorm, [a.q_proj, a.k_proj, a.v_proj])
        fold(layer.post_attention_layernorm, [m.gate_proj, m.up_proj])

    def rms(x):
        return x / (x.square().sum(-1, keepdim=True) / D + model.config.rms_norm_eps).sqrt()

    def pca(x):
        flat = x.flatten(0, -2)
        return torch.linalg.eigh(flat.T @ flat).eigenvectors.flip(1)

    def run(layer, x, kind, positions):
        if kind == "mlp":
            return layer.mlp(rms(x))
        return layer.self_attn(
            hidden_states=rms(x),
            attention_mask=torch.full((x.shape[1],) * 2, -1e30).triu(1)[None, None].double(),
            position_embeddings=positions,
        )[0]

    streams = {"calibration": inner.embed_tokens(tokens), "test": inner.embed_tokens(IDS)}
    places = {k: torch.arange(v.shape[1])[None] for k, v in streams.items()}
    rope = {k: inner.rotary_emb(v, places[k]) for k, v in streams.items()}
    for layer in inner.layers:
        for kind in ("attention", "mlp"):
            Q = pca(streams["calibration"])[:, :width]
            for name, x in streams.items():
                x = x @ Q @ Q.T  # the sliced stream, in all coordinates
                streams[name] = x + run(layer, x, kind, rope[name])
    return model.lm_head(rms(streams["test"]))


@pytest.mark.slow
@pytest.mark.parametrize("dense", GATED, indirect=True, ids=str)
def test_it_is_the_published_algorithm(dense):
    out = build(dense, width=40, round_to=8)
    plan = edgepack.plan(dense.folder.parent / "slice.yaml", "checkpoint")
    tokens = plan.text.tokens.train
    model = transformers.AutoModelForCausalLM.from_pretrained(
        dense.folder, attn_implementation="eager"
    )
    wanted = published(model, tokens, 40)
    got = logits(out)
    assert (got - wanted).abs().max() < 2e-3 * wanted.std()
    assert (got - Decoder(dense).logits(IDS)).abs().max() > 0.1 * wanted.std()


@pytest.mark.slow
def test_our_own_forward_pass_is_that_of_transformers(dense):
    out = build(dense, schedule={"attention": [0.1, 0.4], "mlp": [0.3, 0.2]}, slice_head=True)
    plan = edgepack.plan(dense.folder.parent / "slice.yaml", "checkpoint")
    assert (Decoder(plan.model).logits(IDS) - logits(out)).abs().max() < 1e-3
    config = json.loads((out / "config.json").read_text())
    phi = config["model_type"] == "phi"
    assert config["sliced_widths"] == ([56, 40, 40] if phi else [56, 48, 40, 48, 48])
    assert config["hidden_size"] == HIDDEN
    model = load(out)
    names = [name for name, _ in model.named_parameters() if "shortcut" in name]
    assert len(names) == (2 if phi else 4)
    text = model.generate(IDS[:1], max_new_tokens=4, do_sample=False)
    assert text.shape == (1, IDS.shape[1] + 4)


def test_widths(tmp_path):
    make_model(tmp_path / "model", layers=3)
    model = open_checkpoint(str(tmp_path / "model"))
    constant = Slice(method="per_block", sparsity=0.25)
    assert kept_widths(model, constant) == (48,) * 6 + (64,)
    depth = {"attention": [0.0, 0.5], "mlp": [0.5, 0.0]}
    options = Slice(method="per_block", schedule=depth, slice_head=True)
    assert kept_widths(model, options) == (64, 32, 48, 48, 32, 64, 64)
    with pytest.raises(RecipeError, match="more than the 64 columns"):
        kept_widths(model, Slice(method="per_block", width=65))


@pytest.mark.slow
@pytest.mark.parametrize("family", LAYER_NORM)
def test_layer_norm_models_are_sliced_per_block_and_no_gguf(tmp_path, family):
    make_model(tmp_path / "model", family)
    assert "have LayerNorms" in says("plan", recipe(tmp_path, 40), "--target", "checkpoint")
    path = recipe(tmp_path, 40, method="per_block")
    assert "cannot be written as GGUF" in says("plan", recipe(tmp_path, 40))
    given = json.loads(path.read_text())
    given["slice"]["method"], given["calibrate"]["source"] = "per_block", "self"
    path.write_text(json.dumps(given))
    assert "name a text file" in says("plan", path, "--target", "checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize("family", LAYER_NORM)
def test_centred_models_have_no_means(tmp_path, family):
    make_model(tmp_path / "model", family, dtype=torch.float32)
    model = open_checkpoint(str(tmp_path / "model"))
    changed = center(model)
    assert center(changed) is changed
    assert (Decoder(changed).logits(IDS) - Decoder(model).logits(IDS)).abs().max() < 1e-4
    for spec in changed.specs.values():
        if spec.role in ("token_embd", "attn_output", "ffn_down"):
            means = changed.tensor(spec.name).mean(1 if spec.role == "token_embd" else 0)
            assert means.abs().max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 40, "slice_head": True}, "slice_head is for method: per_block"),
        ({"width": 40, "method": "per_block"}, "no GGUF architecture has the shortcut matrices"),
        ({"width": 40, "method": "per_block", "round_to": 0}, "slice.round_to"),
    ],
)
def test_what_cannot_be_is_said_while_planning(tmp_path, options, said):
    make_model(tmp_path / "model", tied=False)
    assert said in says("plan", recipe(tmp_path, **options))


@pytest.mark.slow
def test_shortcuts_are_counted(tmp_path):
    make_model(tmp_path / "model", tied=False)
    path = recipe(tmp_path, 40, method="per_block")
    parts = edgepack.plan(path, "checkpoint").find(stage.Slice).facts()["slice"]
    assert parts["shortcuts"] == (0, 3 * 40 * 40 + 40 * HIDDEN)
    growing = says(
        "plan",
        recipe(tmp_path, HIDDEN, method="per_block", allow_growth=False),
        "--target",
        "checkpoint",
    )
    assert "every half of a block has a shortcut matrix" in growing


@pytest.mark.slow
def test_a_killed_slice_goes_on(tmp_path, monkeypatch):
    make_model(tmp_path / "model", tied=False, dtype=torch.float32)
    path = recipe(tmp_path, 40, method="per_block")

    def work(cache: str) -> None:
        monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / cache))
        edgepack.build(path, "checkpoint", out=tmp_path / "out", force=True)

    survives(work, tmp_path / "out", first=1, step=3)
