"""Fine-tunes as they come: a base and PEFT adapters are the model that PEFT makes of them."""

import json
import pickle
import shutil

import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import edgepack
from edgepack.core import plugins
from edgepack.core.artifact import Artifact
from edgepack.errors import EdgepackError
from edgepack.model.decoder import Decoder
from edgepack.model.open import open_model
from edgepack.recipe.fine_tune import FineTune
from tests.support.fine_tunes import make_adapter, merged
from tests.support.tiny import WITHOUT_EXPERTS, make_model, write_gguf

TOKENS = torch.randint(3, 290, (1, 24), generator=torch.Generator().manual_seed(0))
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    for name, tied in (("tied", True), ("untied", False)):
        make_model(folder / name, "qwen2", tied=tied, dtype=torch.float32)
    return folder


def opened(place, base, *adapters):
    return open_model(FineTune(base=base, adapter=list(adapters)), place)


VARIANTS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "down_proj": 8},
        "alpha_pattern": {"^model.layers.1.self_attn.q_proj": 3, "v_proj": 16},
    },
    "dora": {"use_dora": True},
    "dora with rslora": {"use_dora": True, "use_rslora": True},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "dora of an embedding": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    "whole modules": {"modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    "a norm in every block": {"modules_to_save": ["input_layernorm"]},
    "biases": {"bias": "all"},
    "biases of B": {"target_modules": ["q_proj", "k_proj"], "lora_bias": True},
    "rows of tokens": {"trainable_token_indices": [3, 9, 200]},
    "fan_in_fan_out": {"target_modules": ["o_proj"], "fan_in_fan_out": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_are_those_of_pefts_merge(place, tmp_path, variant):
    wanted = merged(make_adapter(place / "untied", tmp_path / "adapter", **VARIANTS[variant]))
    checkpoint = opened(place, "untied", str(tmp_path / "adapter"))
    base = open_model(str(place / "untied"))
    changed = 0
    for name in checkpoint.specs:
        W = checkpoint.tensor(name)
        assert torch.allclose(W, wanted[name], rtol=1e-5, atol=1e-6), name
        changed += not torch.equal(W, base.tensor(name))
    assert changed >= 2
    assert {spec.shape for spec in checkpoint.specs.values()} == {
        spec.shape for spec in base.specs.values()
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", [*WITHOUT_EXPERTS, "lfm2_moe"])  # PEFT has no DoRA of stacks
def test_every_family_computes_what_pefts_model_computes(tmp_path, family):
    """All linear layers with DoRA, fused ones among them, and all norms, Gemma's 1 + γ too."""
    tied = plugins.find("architectures", family).head != "untied"
    make_model(tmp_path / "base", family, tied=tied, dtype=torch.float32)
    config = {"target_modules": "all-linear", "modules_to_save": ["norm"], "use_dora": True}
    tuned = make_adapter(tmp_path / "base", tmp_path / "adapter", **config)
    with torch.no_grad():
        wanted = tuned(TOKENS).logits
        with tuned.disable_adapter():
            plain = tuned(TOKENS).logits
    checkpoint = opened(tmp_path, "base", "adapter")
    found = Decoder(checkpoint).logits(TOKENS)
    assert (found - wanted).abs().max() < 2e-3 * wanted.std()
    assert (plain - wanted).abs().max() > 0.1 * wanted.std()
    assert checkpoint.gguf_metadata()["general.architecture"]


def test_names_of_a_multimodal_model_are_those_of_its_language_model(tmp_path):
    make_model(tmp_path / "base", "gemma3_text", dtype=torch.float32)
    make_adapter(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj"])
    name = "model.layers.1.self_attn.q_proj.weight"
    wanted = opened(tmp_path, "base", "adapter").tensor(name)
    path = tmp_path / "adapter" / WEIGHTS
    tensors = load_file(path)
    for outer in ("model.language_model.", "language_model.model."):
        inner = len("base_model.model.model.")
        renamed = {f"base_model.model.{outer}{key[inner:]}": W for key, W in tensors.items()}
        vision = {"base_model.model.model.vision_tower.x.lora_A.weight": torch.ones(4, 8)}
        save_file(renamed | vision, path)
        found = opened(tmp_path, "base", "adapter")
        assert torch.equal(found.tensor(name), wanted)
        assert [w for w in found.warnings() if "vision or audio (1 tensors)" in w]


def test_a_head_that_llama_cpp_has_tied_only_is_refused_for_gguf(tmp_path):
    make_model(tmp_path / "base", "gemma2", dtype=torch.float32)
    make_adapter(tmp_path / "base", tmp_path / "adapter", modules_to_save=["lm_head"])
    with pytest.raises(EdgepackError, match="whose head is tied"):
        opened(tmp_path, "base", "adapter").gguf_metadata()


TIED = {
    "linear layers only": ({}, True),
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, False),
    "head": ({"target_modules": ["lm_head", "q_proj"]}, False),
    "whole embedding": ({"modules_to_save": ["embed_tokens"]}, False),
    "whole head": ({"modules_to_save": ["lm_head"]}, False),
    "rows of tokens": ({"trainable_token_indices": [3, 9, 200]}, True),
    "tied in training": ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
}


@pytest.mark.parametrize("case", TIED)
def test_a_tied_model_computes_what_pefts_model_computes(place, tmp_path, case):
    config, tied = TIED[case]
    tuned = make_adapter(place / "tied", tmp_path / "adapter", **config)
    with torch.no_grad():
        wanted = tuned(TOKENS).logits
    checkpoint = opened(place, "tied", str(tmp_path / "adapter"))
    assert checkpoint.dimensions.tie_word_embeddings == tied
    assert bool(checkpoint.warnings()) != tied
    assert torch.allclose(Decoder(checkpoint).logits(TOKENS), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", ["tied", "untied"])
def test_added_tokens_are_in_the_embeddings_and_in_the_tokenizer(place, tmp_path, base):
    tuned = make_adapter(place / base, tmp_path / "adapter", tokens=3)
    checkpoint = opened(place, base, str(tmp_path / "adapter"))
    rows = open_model(str(place / base)).dimensions.vocab_size
    assert checkpoint.dimensions.vocab_size == checkpoint.specs[EMBEDDING].shape[0] == rows + 3
    assert checkpoint.dimensions.tie_word_embeddings == (base == "tied")
    ids = checkpoint.tokenizer.encode("a<|new2|>")
    assert ids[-1] == rows + 2
    tokens = torch.tensor([[*ids, rows, 7]])
    with torch.no_grad():
        wanted = tuned(tokens).logits
    assert torch.allclose(Decoder(checkpoint).logits(tokens), wanted, rtol=1e-4, atol=1e-4)
    metadata = checkpoint.gguf_metadata()
    assert metadata["tokenizer.ggml.tokens"][0][rows:] == ["<|new0|>", "<|new1|>", "<|new2|>"]
    assert metadata["qwen2.vocab_size"][0] == rows + 3


def test_adapters_follow_one_another(place, tmp_path):
    """As if the first had been merged before the second was trained."""
    first = make_adapter(place / "untied", tmp_path / "one", use_dora=True)
    middle = first.merge_and_unload()
    middle.save_pretrained(tmp_path / "middle")
    for path in (place / "untied").glob("tokenizer*"):
        shutil.copy(path, tmp_path / "middle")
    wanted = merged(make_adapter(tmp_path / "middle", tmp_path / "two", seed=2, use_dora=True))
    checkpoint = opened(place, "untied", str(tmp_path / "one"), str(tmp_path / "two"))
    for name in checkpoint.specs:
        assert torch.allclose(checkpoint.tensor(name), wanted[name], rtol=1e-5, atol=1e-6)
    assert checkpoint.source["model"] == "untied+one+two"


def test_the_base_may_be_what_the_adapter_says(place, tmp_path):
    make_adapter(place / "untied", tmp_path / "adapter")
    wanted = opened(place, "untied", str(tmp_path / "adapter"))
    named = FineTune(adapter=str(tmp_path / "adapter"))
    assert open_model(named, place).key == wanted.key
    edit(tmp_path / "adapter", base_model_name_or_path="gone/away")
    with pytest.raises(EdgepackError, match="its base gone/away cannot be opened"):
        open_model(named, place)
    edit(tmp_path / "adapter", base_model_name_or_path=None)
    with pytest.raises(EdgepackError, match="names no base"):
        open_model(named, place)


def edit(folder, **changes):
    content = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(content))


REFUSED = [
    ({"peft_type": "LOHA"}, "is of type 'LOHA'"),
    ({"init_lora_weights": "pissa_niter_4"}, "changes the base"),
    ({"layer_replication": [[0, 2], [1, 2]]}, "repeats layers"),
    ({"target_parameters": ["experts.down_proj"]}, "no linear layers"),
    ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
    ({"use_dora": True}, "has no lora_magnitude_vector"),
]


@pytest.mark.parametrize(("changes", "named"), REFUSED)
def test_adapters_that_are_no_change_of_weights(place, tmp_path, changes, named):
    make_adapter(place / "untied", tmp_path / "adapter")
    edit(tmp_path / "adapter", **changes)
    with pytest.raises(EdgepackError, match=named) as caught:
        opened(place, "untied", str(tmp_path / "adapter"))
    assert caught.value.hint


def test_an_adapter_of_another_base_is_one_line(place, tmp_path):
    make_adapter(place / "untied", tmp_path / "adapter")
    make_model(tmp_path / "shallow", "qwen2", layers=1)
    make_model(tmp_path / "wide", "qwen2", hidden=128)
    for base, said in (("shallow", "layers.1.*which shallow does not have"), ("wide", "not fit")):
        with pytest.raises(EdgepackError, match=said) as caught:
            opened(tmp_path, base, "adapter")
        assert "another model" in caught.value.hint
    path = tmp_path / "adapter" / WEIGHTS
    tensors = load_file(path)
    dropped = next(name for name in tensors if "lora_B" in name)
    save_file({name: W for name, W in tensors.items() if name != dropped}, path)
    with pytest.raises(EdgepackError, match="has only A"):
        opened(place, "untied", str(tmp_path / "adapter"))
    with pytest.raises(EdgepackError, match="is no PEFT adapter"):
        opened(place, "untied", "tied")
    with pytest.raises(EdgepackError, match="there is no such adapter"):
        opened(place, "untied", "./nowhere")


def test_the_key_depends_on_content_not_on_names(place, tmp_path):
    make_adapter(place / "untied", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    key = opened(place, "untied", str(tmp_path / "a")).key
    assert key == opened(place, "untied", str(tmp_path / "b")).key
    assert key != open_model(str(place / "untied")).key
    edit(tmp_path / "b", lora_alpha=7)
    assert key != opened(place, "untied", str(tmp_path / "b")).key
    checkpoint = opened(place, "untied", str(tmp_path / "a"))
    again = pickle.loads(pickle.dumps(checkpoint))
    assert again.key == key
    assert torch.equal(again.tensor(HEAD), checkpoint.tensor(HEAD))


def test_an_adapter_of_the_hub_is_known_by_its_commit(place, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub/models--someone--lora"
    make_adapter(place / "untied", repository / "snapshots" / commit, modules_to_save=["norm"])
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    checkpoint = opened(place, "untied", "someone/lora")
    about = checkpoint.source
    assert about["adapters"] == [{"model": "someone/lora", "kind": "hub", "revision": commit}]
    assert about["base"]["model"] == "untied"
    assert checkpoint.gguf_metadata()["general.name"][0] == "Untied+lora"
    with pytest.raises(EdgepackError, match="HF_HUB_OFFLINE"):
        opened(place, "untied", "someone/else")


def test_a_rounded_base_is_exact_where_the_adapter_changes_nothing(place, tmp_path):
    write_gguf(tmp_path / "base.gguf", open_model(str(place / "untied")), "Q8_0")
    make_adapter(place / "untied", tmp_path / "adapter")
    base = open_model(str(tmp_path / "base.gguf"))
    checkpoint = opened(tmp_path, "base.gguf", "adapter")
    kept = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(checkpoint.quantized(kept).codes, base.quantized(kept).codes)
    assert checkpoint.specs[kept].dtype == "Q8_0"
    changed = "model.layers.0.self_attn.q_proj.weight"
    assert checkpoint.quantized(changed) is None
    assert checkpoint.specs[changed].dtype == "F16"  # as a checkpoint of it is written
    adapter = checkpoint.adapters[0]
    assert torch.equal(checkpoint.tensor(changed), adapter.apply(changed, base.tensor(changed)))
    assert checkpoint.warnings() == base.warnings() != ()


@pytest.mark.slow
def test_a_build_names_base_and_adapter_and_finds_them_again(place, tmp_path):
    pytest.importorskip("llama_cpp")
    make_adapter(place / "tied", tmp_path / "lora")
    recipe = {
        "model": {"base": str(place / "tied"), "adapter": str(tmp_path / "lora")},
        "calibrate": {"tokens": 512, "sequence_length": 64},
        "compress": {"format": "q8_0", "damping": [0.1]},
        "export": {"measure": {"tokens": 256, "context": 64}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    built = edgepack.build(tmp_path / "recipe.yaml", "gguf", out=tmp_path / "out")
    manifest = Artifact.open(built.folder).manifest
    assert manifest["model"]["model"] == "tied+lora"
    assert manifest["recipe"]["model"] == {"base": "tied", "adapter": "lora"}
    assert set(manifest["sources"]) == {"model.base", "model.adapter"}
    assert manifest["measured"]["results"]["edgepack"]["kl_mean"] < 0.01
    again = open_model(str(built.folder / "base.gguf"))
    tuned = opened(place, "tied", str(tmp_path / "lora"))
    name = "model.layers.0.self_attn.q_proj.weight"
    error = (again.tensor(name) - tuned.tensor(name)).norm() / tuned.tensor(name).norm()
    assert error < 0.01
    found = edgepack.evaluate(built.folder, tokens=256, context=64)
    assert found
