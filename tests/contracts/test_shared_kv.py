"""Blocks that read keys and values of an earlier block, and have inputs of their own (Gemma 4):
exact gradients block by block, packed, tuned, merged, saved; and what is refused."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import edgepack
from edgepack.checkpoint import open_checkpoint, save
from edgepack.core.progress import finish
from edgepack.core.weight_files import load_weight
from edgepack.decompose.stage import Decompose
from edgepack.errors import CheckpointError, EdgepackError, RecipeError
from edgepack.export.gguf import write_plain
from edgepack.model.decoder import Decoder
from tests.merge.recipes import LINEAR, made, plan
from tests.support.recipes import write_recipe, write_texts
from tests.support.tiny import make_model

LAYERS = 6
SHARED = {"num_kv_shared_layers": 2, "use_double_wide_mlp": True}
DENSE = {
    "hidden_size_per_layer_input": 0,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
}
TURNS = {"rope_theta": 1e6, "partial_rotary_factor": 0.25}
SLIDING, FULL = "sliding_attention", "full_attention"
IDS = torch.arange(3, 93).view(2, 45)


def make(folder, more=SHARED, **options):
    options = {"layers": LAYERS, "dtype": torch.float32, **options}
    return make_model(folder, "gemma4_text", **options, **more)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared") / "made"
    return folder, make(folder)


@torch.no_grad()
def expected(model, ids=IDS):
    logits = model(ids).logits
    assert logits.std() > 0.3  # a flat model would agree with anything
    return logits


def assert_near(found, wanted, tolerance=1e-4):
    assert (found - wanted).abs().max() < tolerance * wanted.std()


# ------------------------------------------------------------------------ forward and backward


@torch.no_grad()
@pytest.mark.parametrize("more", [SHARED, DENSE], ids=["shared", "dense"])
def test_runs_of_tokens_with_caches_are_the_full_forward(more, tmp_path):
    model = make(tmp_path / "made", more)
    decoder = Decoder(open_checkpoint(str(tmp_path / "made")))
    blocks = [decoder.block(i) for i in range(LAYERS)]
    caches, (head, embed), parts = decoder.caches(2, 45), decoder.ends(), []
    start = 0
    for ids in IDS.split([1, 20, 1, 2, 21], dim=1):
        x = embed(ids, start)
        for block, kept in zip(blocks, caches, strict=True):
            x = block(x, cache=kept)
        parts.append(head(x))
        start += ids.shape[1]
    assert_near(torch.cat(parts, dim=1), expected(model))


def test_gradients_block_by_block_are_those_of_the_whole_model(shared):
    """Judged by autograd through transformers' model: at weights whose outputs are shared keys and
    values, at one that reads them, and at the embeddings, which also make inputs of blocks."""
    folder, model = shared
    decoder = Decoder(open_checkpoint(str(folder)))
    assert decoder.checkpoint.dimensions.tie_word_embeddings
    names = {
        (3, "attn_k"): "model.layers.3.self_attn.k_proj.weight",
        (2, "attn_v"): "model.layers.2.self_attn.v_proj.weight",
        (4, "attn_q"): "model.layers.4.self_attn.q_proj.weight",
        (0, "inp_gate"): "model.layers.0.per_layer_input_gate.weight",
    }
    model.zero_grad()
    target = torch.randn(2, 45, model.config.vocab_size, generator=torch.Generator().manual_seed(1))
    embedded = model.get_input_embeddings()(IDS).detach()
    rows = (embedded / model.config.hidden_size**0.5).requires_grad_()
    per_layer = model.model.get_per_layer_inputs(IDS)
    hidden = model.model(
        inputs_embeds=rows * model.config.hidden_size**0.5, per_layer_inputs=per_layer
    ).last_hidden_state
    logits = model.lm_head(hidden)
    cap = model.config.final_logit_softcapping
    (cap * torch.tanh(logits / cap) * target).sum().backward()
    wanted = dict(model.named_parameters())

    with torch.no_grad():
        states = [decoder.embed(IDS)]
        for i in range(LAYERS):
            states.append(decoder.block(i)(states[-1]))
    assert [x.shape[-1] for x in states] == list(decoder.widths)
    last = states[-1].requires_grad_()
    (g,) = torch.autograd.grad((decoder.head()(last) * target).sum(), last)
    for i in reversed(range(LAYERS)):
        block, x = decoder.block(i), states[i].requires_grad_()
        leaves = {role: block.weights[role].requires_grad_() for role in block.linears}
        found = torch.autograd.grad(block(x), [x, *leaves.values()], g)
        g, by_role = found[0], dict(zip(leaves, found[1:], strict=True))
        for (index, role), name in names.items():
            if index == i:
                assert_near(by_role[role], wanted[name].grad, 1e-4)
    assert_near(decoder.embedding_gradient(IDS, g), rows.grad, 1e-4)


def test_rows_are_read_alone(shared, tmp_path):
    """As whole tables have them: of a folder, and of GGUFs of floats and of blocks."""
    folder, _ = shared
    write_plain(tmp_path / "f16.gguf", open_checkpoint(str(folder)))
    write_plain(tmp_path / "q8_0.gguf", open_checkpoint(str(folder)), "q8_0")
    wanted = torch.tensor([7, 3, 500])
    for place in (folder, tmp_path / "f16.gguf", tmp_path / "q8_0.gguf"):
        checkpoint = open_checkpoint(str(place))
        name = checkpoint.architecture.hf_name("per_layer_token_embd")
        assert torch.equal(checkpoint.rows(name, wanted), checkpoint.tensor(name)[wanted])


# ------------------------------------------------------------------------ files


def test_a_saved_checkpoint_is_the_model_in_transformers(shared, tmp_path):
    folder, model = shared
    checkpoint = open_checkpoint(str(folder))
    (tmp_path / "saved").mkdir()
    finish(save.save(checkpoint, checkpoint.tensor, tmp_path / "saved", "test"))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert_near(expected(again), expected(model))
    assert open_checkpoint(str(tmp_path / "saved")).dimensions == checkpoint.dimensions


@pytest.mark.parametrize("more", [SHARED, DENSE], ids=["shared", "dense"])
def test_a_gguf_reads_as_the_folder(more, tmp_path):
    make(tmp_path / "made", more)
    original = open_checkpoint(str(tmp_path / "made"))
    write_plain(tmp_path / "model.gguf", original)
    again = open_checkpoint(str(tmp_path / "model.gguf"))
    assert again.dimensions == original.dimensions
    assert {n: s.shape for n, s in again.specs.items()} == {
        n: s.shape for n, s in original.specs.items()
    }


def test_keys_that_nothing_reads_are_passed_over(shared, tmp_path):
    """Published files have them in blocks that share those of another block."""
    _, model = shared
    made = tmp_path / "made"
    make(made)
    tensors = load_file(made / "model.safetensors")
    for name in ("k_proj.weight", "v_proj.weight", "k_norm.weight"):
        like = tensors[f"model.layers.2.self_attn.{name}"]
        tensors[f"model.layers.5.self_attn.{name}"] = torch.randn_like(like)
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(str(made))
    assert not any("layers.5.self_attn.k_" in name for name in checkpoint.specs)
    assert_near(Decoder(checkpoint).logits(IDS), expected(model))


def test_merged_models_are_the_mean_weight_by_weight(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        make(tmp_path / name, seed=seed)
    stage = plan(tmp_path, LINEAR)
    made(stage)
    a, b, merged = (
        open_checkpoint(str(place)) for place in (tmp_path / "a", tmp_path / "b", stage.folder)
    )
    assert set(merged.specs) == set(a.specs)
    for name in a.specs:
        mean = 0.25 * a.tensor(name) + 0.75 * b.tensor(name)
        assert torch.allclose(merged.tensor(name), mean, atol=1e-5), name
    model = transformers.AutoModelForCausalLM.from_pretrained(stage.folder, dtype=torch.float32)
    assert_near(Decoder(merged).logits(IDS), expected(model))


# ------------------------------------------------------------------------ packing and tuning


def write_project(folder, **sections):
    make(
        folder / "model",
        tied=True,
        hidden=128,
        intermediate=128,
        layers=LAYERS,
        dtype=torch.float16,
    )
    write_texts(folder, 12)
    return write_recipe(folder, **sections)


@pytest.fixture(scope="module", params=["layer", "guided", "model"])
def built(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    more = {"finetune": {"data": "rows.jsonl", "steps": 4, "learning_rate": 0.01}}
    recipe = write_project(
        folder,
        calibrate={"objective": request.param},
        compress={"format": "q4_0", "rank": 8},
        **(more if request.param == "guided" else {}),
    )
    return edgepack.plan(recipe, "gguf"), edgepack.build(recipe, "gguf", out=folder / "out")


@pytest.mark.slow
def test_every_matrix_of_a_block_is_calibrated(built):
    _, artifact = built
    weights = artifact.manifest["weights"]
    inside = {name: about for name, about in weights.items() if ".layers." in name}
    assert any("per_layer_input_gate" in name for name in inside)
    assert all(about["error"] < 0.9 * about["error_plain"] for about in inside.values()), inside


@pytest.mark.slow
@torch.no_grad()
def test_llama_cpp_computes_the_packed_model(built):
    llama_cpp = pytest.importorskip("edgepack.runtimes.llama_cpp")
    plan, artifact = built
    stage = plan.find(Decompose)
    dense = {n: lambda n=n: load_weight(stage.folder, n)[0].dense() for n in plan.formats}
    wanted = Decoder(plan.model, dense).logits(IDS)
    base, factors = artifact.folder / "base.gguf", artifact.folder / "factors.gguf"
    with llama_cpp.LlamaCpp(base, factors, context=64) as runtime:
        logits = np.stack([runtime.logits(row.tolist()) for row in IDS])
    found = torch.from_numpy(logits)
    # llama.cpp rounds activations, and q·k is not divided by anything here.
    assert (found - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.slow
def test_tuning_learns(built):
    tuned = built[1].manifest.get("finetuned")
    if tuned is None:
        pytest.skip("this model is not tuned")
    assert tuned["best_step"] > 0
    assert tuned["curve"]["held_out"][-1][1] < tuned["before"]["loss"]


# ------------------------------------------------------------------------ what is refused


def test_what_is_not_supported_is_refused_in_one_line(tmp_path):
    recipe = write_project(tmp_path, compress={"format": "q4_0"})
    with pytest.raises(RecipeError, match="blocks of several kinds"):
        edgepack.plan(recipe, "onnx")
    given = json.loads(recipe.read_text())
    recipe.write_text(json.dumps(given | {"slice": {"method": "global", "width": 64}}))
    with pytest.raises(RecipeError, match="norms behind attention and MLP"):
        edgepack.plan(recipe, "gguf")
    for option in ({"rotate": "hadamard"}, {"pad_width": 256}):
        recipe.write_text(json.dumps(given | {"compress": {"format": "q4_0", **option}}))
        with pytest.raises(RecipeError):
            edgepack.plan(recipe, "gguf")


@pytest.mark.slow
def test_a_training_graph_is_refused(built, tmp_path):
    pytest.importorskip("onnx")
    with pytest.raises(EdgepackError, match=r"several kinds .* have no training graph"):
        edgepack.export_training(built[1].folder, tmp_path / "training")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"enable_moe_block": True}, "enable_moe_block True"),
        ({"num_kv_shared_layers": 6}, "6 of 6 blocks share"),
        ({"num_kv_shared_layers": 5}, "no block before is of its kind"),
        ({"num_kv_shared_layers": 1}, "lacks tensors"),
        ({"use_double_wide_mlp": False}, "mlp.gate_proj.weight has shape"),
        ({"per_layer_config": {"1": {"head_dim": 64}}}, "differ in size"),
        ({"per_layer_config": {"1": {"sliding_window": 64}}}, "sliding_window is not supported"),
        ({"hidden_size_per_layer_input": 16}, "has shape"),
        (
            {
                "rope_parameters": {
                    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
                    FULL: {"rope_type": "proportional", "factor": 2.0, **TURNS},
                }
            },
            "with factor 2.0",
        ),
    ],
)
def test_configurations_of_other_models_are_refused(change, named, shared, tmp_path):
    make(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(str(tmp_path / "model"))


def test_other_sharing_than_llama_cpp_s_is_refused(tmp_path):
    """It takes the two blocks before the first that shares, the first of them with a window, and
    ends the process, or computes something else, where they are others."""
    make(tmp_path / "made", {**SHARED, "num_kv_shared_layers": 3})
    with pytest.raises(CheckpointError, match="before the blocks that share"):
        write_plain(tmp_path / "model.gguf", open_checkpoint(str(tmp_path / "made")))
