"""What kind of model a folder holds: other families, adapters, pickles, pointers, bare models."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgepack.checkpoint import open_checkpoint, save
from edgepack.core.progress import finish
from edgepack.errors import CheckpointError
from edgepack.model.decoder import Decoder
from tests.support.tiny import FAMILIES, LAYER_NORM, make_model, write_gguf

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n"


@pytest.fixture
def folder(tmp_path):
    make_model(tmp_path / "m")
    return tmp_path / "m"


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(model):
    with pytest.raises(CheckpointError) as caught:
        _ = open_checkpoint(str(model)).tokenizer
    text = str(caught.value)
    assert len(text) < 300
    assert "\n" not in text
    assert caught.value.hint
    return f"{text} [{caught.value.hint}]"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_files_that_git_lfs_has_not_fetched(folder, name):
    (folder / name).write_bytes(POINTER)
    assert f"{name}: a Git LFS pointer" in refusal(folder)


def test_weights_of_other_kinds(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin is no safetensors file" in refusal(folder)
    (folder / "pytorch_model.bin").rename(folder / "part-7.safetensors")
    assert "part-7.safetensors" in refusal(folder)
    (folder / "part-7.safetensors").unlink()
    assert "model.safetensors is missing" in refusal(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "Qwen2ForCausalLM"),
        ({"architectures": "LlamaForCausalLM"}, "architectures should be a list"),
        ({"auto_map": ["x"]}, "auto_map should be a dict"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_x.XForCausalLM"}}, "code of its own"),
        ({"quantization_config": {"quant_method": ["x" * 900]}}, "already quantized"),
        ({"quantization_config": {}}, "already quantized"),
    ],
)
def test_models_that_are_another(folder, changes, named):
    edit(folder, **changes)
    assert named in refusal(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"quantization_config": None},
        {"architectures": None, "auto_map": None},
        {"architectures": ["LlamaModel"]},
        {"auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}},
        {"auto_map": {"AutoConfig": "configuration_llama.LlamaConfig"}},
    ],
)
def test_models_that_are_not(folder, changes):
    edit(folder, **changes)
    assert open_checkpoint(str(folder)).architecture.name == "llama"


@pytest.mark.slow
@pytest.mark.parametrize("content", ["[]", "3", "null", '"llama"', "", "{", "[" * 9000])
def test_a_configuration_that_is_none(folder, content):
    (folder / "config.json").write_text(content)
    assert "config.json" in refusal(folder)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES + LAYER_NORM)
def test_names_without_the_prefix_are_the_inner_model(tmp_path, family):
    """As transformers saves `model.model`; the other way round, a prefix before the head."""
    make_model(tmp_path / "m", family, tied=False)
    path = tmp_path / "m/model.safetensors"
    tensors = load_file(path)
    before = Decoder(open_checkpoint("m", tmp_path)).logits(torch.tensor([[5, 9, 3]]))
    renamed = {
        name.removeprefix("model.") if name.startswith("model.") else f"model.{name}": W
        for name, W in tensors.items()
    }
    save_file(renamed, path)
    after = Decoder(open_checkpoint("m", tmp_path)).logits(torch.tensor([[5, 9, 3]]))
    assert torch.equal(before, after)
    save_file(renamed | {"model.embed_tokens.weight": torch.zeros(2)}, path)
    if family != "opt":
        assert "model.embed_tokens.weight is there twice" in refusal(tmp_path / "m")


def test_biases_that_the_configuration_leaves_out(folder, tmp_path):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for block in range(2):
        for part, width in (("q", 64), ("k", 32), ("v", 32)):
            tensors[f"model.layers.{block}.self_attn.{part}_proj.bias"] = torch.ones(width)
    save_file(tensors, path)
    assert "attention_bias" in refusal(folder)
    edit(folder, attention_bias=True)
    assert open_checkpoint(str(folder)).specs["model.layers.0.self_attn.q_proj.bias"]


def test_a_saved_model_with_optional_biases_is_read_again(tmp_path):
    model = make_model(tmp_path / "m", "qwen3", attention_bias=True)
    path = tmp_path / "m/model.safetensors"
    tensors = load_file(path)
    save_file({k: W for k, W in tensors.items() if not k.endswith("o_proj.bias")}, path)
    checkpoint = open_checkpoint("m", tmp_path)
    (tmp_path / "again").mkdir()
    finish(save.save(checkpoint, checkpoint.tensor, tmp_path / "again", "test"))
    assert open_checkpoint("again", tmp_path).specs.keys() == checkpoint.specs.keys()
    assert model.config.attention_bias


# Sliding windows, which GGUF has no place for


@pytest.mark.slow
@pytest.mark.parametrize("window", [32, 255, 256, 4096])
def test_a_gguf_says_no_more_context_than_the_window(tmp_path, window):
    make_model(tmp_path / "m", "mistral", sliding_window=window)
    checkpoint = open_checkpoint("m", tmp_path)
    write_gguf(tmp_path / "m.gguf", checkpoint)
    again = open_checkpoint("m.gguf", tmp_path).dimensions
    assert again.max_position_embeddings == min(window, 256)
    assert checkpoint.dimensions.max_position_embeddings == 256  # ONNX has windows
    warnings = checkpoint.gguf_warnings()
    if window < 256:
        (warning,) = warnings
        assert f"right up to {window} positions" in warning
    else:
        assert warnings == ()


# Model cards, which gguf reads names and licences from


@pytest.mark.slow
@pytest.mark.parametrize(
    ("card", "warned"),
    [
        ("license: mit", False),
        ("license: [mit, apache-2.0]", False),
        ("name: 3.5", False),
        ("model-index:\n- name: x", False),
        ("license: {a: b}", True),
        ("base_model: [{a: b}]", True),
        ("license: [", True),
        ("a: &a [*a]", False),
        ("x: !!python/object/apply:os.getcwd []", True),
        ("license: " + "x" * 20_000, True),
        ("x: " + "[" * 5000, True),
        ("x: " + "y" * 300_000, True),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_card_that_cannot_be_kept_is_told(folder, card, warned):
    (folder / "README.md").write_text(f"---\n{card}\n---\n# A model\n")
    checkpoint = open_checkpoint(str(folder))
    metadata = checkpoint.gguf_metadata()
    assert isinstance(metadata["general.name"][0], str)
    assert bool(checkpoint.gguf_warnings()) == warned
    write_gguf(folder.parent / "m.gguf", checkpoint)


def test_a_card_that_is_no_text(folder):
    (folder / "README.md").write_bytes(b"---\nlicense: \xff\xfe\n---\n")
    assert open_checkpoint(str(folder)).gguf_warnings()


# Names of models


@pytest.mark.parametrize(
    "name",
    [
        os.fsdecode(b"m\xff\xfe"),
        "a\0b",
        "x" * 5000,
        "x" * 5000 + ".gguf",
        "~nobody-of-this-name/m",
        "package:os.path/x.gguf",
        "package:gguf/../x.gguf",
        "package:gguf//etc/passwd",
        "package:",
        "package:a\nb/x",
        "",
        ".gguf",
    ],
    ids=lambda name: repr(name[:20]),
)
def test_names_that_are_no_path(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    refusal(name)


def test_a_folder_that_may_not_be_read(folder):
    (folder / "config.json").chmod(0)
    if os.access(folder / "config.json", os.R_OK):
        pytest.skip("may read everything")
    assert "config.json: cannot be read" in refusal(folder)
