"""Adapters written and read again, by us, by PEFT and by llama.cpp."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgepack.adapters import files
from edgepack.adapters.adapter import Adapter, BaseId, Lora
from edgepack.adapters.base import PackedBase
from edgepack.errors import EdgepackError
from tests.support.adapters import expected, random_adapter
from tests.support.ggufs import INT8, TOKENS, distance, in_llama_cpp

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def adapter(base):
    return random_adapter(base, mode="stack", lora_alpha=6.0, steps=12)


@pytest.fixture(scope="module")
def written(base, adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "notes"
    files.write(folder, adapter, base, dtype="f32")
    return folder


def same(found, wanted, exact=True):
    assert set(found) == set(wanted)
    for name, lora in wanted.items():
        both = found[name].delta(), lora.delta()
        near = torch.equal(*both) if exact else torch.allclose(*both, atol=2e-3, rtol=2e-3)
        assert near or (torch.dist(*both) < 1e-6 * torch.norm(both[1])), name


def test_what_is_written_is_read_again(base, adapter, written):
    found = files.read(written, base)
    same(found.weights, adapter.weights)
    assert found.base == base.identity
    assert dict(found.about) == {"mode": "stack", "lora_alpha": 6.0, "steps": 12}
    assert found.notes == ()
    about = json.loads((written / "adapter.json").read_text())
    assert about["base"] == {"name": base.name, "digest": base.identity.digest}
    assert about["ranks"][Q_PROJ] == 3
    assert set(about["files"]) == {
        *("adapter.gguf", "peft/README.md"),
        *("peft/adapter_config.json", "peft/adapter_model.safetensors"),
    }


def test_each_of_its_files_can_be_read_alone_and_names_its_base(base, adapter, written):
    for path in (written / "adapter.gguf", written / "peft"):
        found = files.read(path, base)
        same(found.weights, adapter.weights)
        assert found.notes == ()


def test_float16_keeps_what_a_short_training_makes(base, adapter, tmp_path):
    """lora_B near 1e-6, as after a few steps from zero, would keep 4 bits in float16 as it is."""
    small = {n: Lora(w.lora_A * 50, w.lora_B * 1e-6) for n, w in adapter.weights.items()}
    files.write(tmp_path / "small", replace(adapter, weights=small), base)
    found = files.read(tmp_path / "small", base)
    for name, lora in small.items():
        error = torch.dist(found.weights[name].delta(), lora.delta())
        assert error < 1e-3 * torch.norm(lora.delta())


def test_balancing_changes_no_bit(adapter):
    for lora in adapter.weights.values():
        wide = Lora(lora.lora_A * 1024, lora.lora_B / 4096)
        found = wide.balanced()
        torch.testing.assert_close(found.delta(), wide.delta(), rtol=0, atol=0)
        ratio = found.lora_A.abs().amax(1) / found.lora_B.abs().amax(0)
        assert ((ratio > 0.25) & (ratio < 4)).all()
    zero = Lora(torch.ones(2, 3), torch.zeros(4, 2)).balanced()
    assert torch.equal(zero.lora_A, torch.ones(2, 3))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks for what transformers renamed
def test_stock_peft_adds_exactly_the_delta(base, adapter, written, tmp_path):
    peft = pytest.importorskip("peft")
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base.folder.parent / "llama")
    before = {name: value.clone() for name, value in model.float().named_parameters()}
    merged = peft.PeftModel.from_pretrained(model, str(written / "peft")).merge_and_unload()
    for name, value in merged.named_parameters():
        delta = adapter.weights[name].delta() if name in adapter.weights else 0
        torch.testing.assert_close(value, before[name] + delta, rtol=1e-5, atol=1e-5)


def stock_peft(folder, base, **config):
    """An adapter that PEFT itself made and saved, and ΔW of its modules."""
    peft = pytest.importorskip("peft")
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base.folder.parent / "llama")
    wrapped = peft.get_peft_model(model.float(), peft.LoraConfig(task_type="CAUSAL_LM", **config))
    torch.manual_seed(3)
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    wrapped.save_pretrained(folder)
    layers = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in wrapped.named_modules()
        if hasattr(module, "get_delta_weight") and "default" in getattr(module, "lora_A", {})
    }
    return {f"{name}.weight": delta for name, delta in layers.items()}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "config",
    [
        {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"]},
        {
            "r": 4,
            "lora_alpha": 16,
            "target_modules": "all-linear",
            "rank_pattern": {"down_proj": 6, r"layers\.1\.self_attn\.q_proj": 2},
            "alpha_pattern": {"v_proj": 1, "^model.layers.0.mlp.up_proj": 3, "1.*k_proj": 5},
        },
        {"r": 4, "lora_alpha": 16, "target_modules": ["o_proj"], "use_rslora": True},
    ],
    ids=["alpha", "patterns", "rslora"],
)
def test_adapters_of_stock_peft_have_pefts_own_scales(base, tmp_path, config):
    wanted = stock_peft(tmp_path, base, **config)
    found = files.read(tmp_path, base)
    assert set(found.weights) == set(wanted)
    for name, delta in wanted.items():
        torch.testing.assert_close(found.weights[name].delta(), delta, rtol=1e-5, atol=1e-6)
    assert "does not say which base" in found.notes[0]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, r"replaces whole modules \('lm_head'\)"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "changes embeddings"),
        ({"init_lora_weights": "pissa"}, "'pissa', which changes the base"),
        ({"bias": "all"}, "trains biases"),
        ({"lora_bias": True}, "biases of lora_B"),
    ],
)
def test_what_cannot_be_carried_over_is_refused_by_name(base, tmp_path, config, error):
    stock_peft(tmp_path, base, **{"r": 2, "target_modules": ["q_proj"]} | config)
    with pytest.raises(EdgepackError, match=error) as caught:
        files.read(tmp_path, base)
    assert "plain LoRA" in caught.value.hint


@pytest.mark.parametrize("pattern", ["(a+)+$", ".*.*.*.*x", "(", "x" * 300 + "*"])
def test_patterns_that_might_not_end_are_refused(base, written, tmp_path, pattern):
    shutil.copytree(written / "peft", tmp_path / "peft")
    config = tmp_path / "peft/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"alpha_pattern": {pattern: 2}}))
    with pytest.raises(EdgepackError, match="alpha_pattern"):
        files.read(tmp_path / "peft", base)


def edited(written, folder, change):
    """The adapter's PEFT folder with other tensors."""
    shutil.copytree(written / "peft", folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return folder


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda t: t.pop(A), "has only lora_B"),
        (lambda t: t.update({A: torch.zeros(3, 65)}), "does not fit"),
        (lambda t: t.update({A: torch.full((3, 64), torch.nan)}), "no finite numbers"),
        (lambda t: t.update({A: torch.zeros(3, 64, dtype=torch.int32)}), "no finite numbers"),
        (lambda t: t.update({A.replace("q_proj", "x_proj"): t[A].clone()}), "x_proj is no matrix"),
        (lambda t: t.update({"base_model.model.lm_head.weight": t.pop(A)}), "no LoRA pair"),
    ],
)
def test_damaged_peft_folders_are_refused(base, written, tmp_path, change, error):
    with pytest.raises(EdgepackError, match=error):
        files.read(edited(written, tmp_path / "peft", change), base)


def test_truncated_and_missing_files_are_refused(base, written, tmp_path):
    shutil.copytree(written, tmp_path / "a")
    weights = tmp_path / "a/peft/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(EdgepackError, match=r"adapter_model\.safetensors: cannot be read"):
        files.read(tmp_path / "a/peft", base)
    with pytest.raises(EdgepackError, match=r"adapter\.json: .* is not the file"):
        files.read(tmp_path / "a", base)
    weights.unlink()
    with pytest.raises(EdgepackError, match="is not there"):
        files.read(tmp_path / "a/peft", base)
    with pytest.raises(EdgepackError, match="is missing"):
        files.read(tmp_path / "a", base)
    with pytest.raises(EdgepackError, match="is no adapter"):
        files.read(tmp_path, base)


def test_another_base_is_refused_another_name_only_noted(base, adapter, written, tmp_path):
    other = replace(base, files=base.files | {"base.gguf": "0" * 64})
    for path in (written, written / "adapter.gguf", written / "peft"):
        with pytest.raises(EdgepackError, match="was made for") as error:
            files.read(path, other)
        assert other.identity.digest[:12] in str(error.value)
    renamed = replace(base, name="somebody/else")
    found = files.read(written, renamed)
    same(found.weights, adapter.weights)
    assert "calls its base" in found.notes[0]
    with pytest.raises(EdgepackError, match="was made for"):
        files.write(tmp_path / "x", adapter, other)


def test_what_fits_no_weight_is_not_written(base, tmp_path):
    identity, pair = base.identity, Lora(torch.ones(2, 64), torch.ones(64, 2))
    for weights in (
        {},
        {"model.layers.9.x.weight": pair},
        {Q_PROJ: Lora(pair.lora_A[:, :3], pair.lora_B)},
    ):
        with pytest.raises(EdgepackError, match=r"no weight"):
            files.write(tmp_path / "x", Adapter(weights, identity), base)
    assert not (tmp_path / "x").exists()


def test_llama_cpps_scale_of_foreign_adapters_is_honoured(base, adapter, tmp_path):
    """As llama.cpp's converter writes them: alpha in the metadata, no base."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "foreign.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 12.0)
    lora = adapter.weights["model.layers.0.mlp.down_proj.weight"]
    for part, values in (("lora_a", lora.lora_A), ("lora_b", lora.lora_B)):
        writer.add_tensor(f"blk.0.ffn_down.weight.{part}", values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = files.read(path, base)
    wanted = lora.delta() * 12 / lora.rank
    torch.testing.assert_close(found.weights["model.layers.0.mlp.down_proj.weight"].delta(), wanted)
    assert "does not say" in found.notes[0]


@pytest.mark.llama
def test_llama_cpp_adds_the_delta_to_the_base(base, adapter, written):
    """Against transformers on Q + ΔW; q and k are in llama.cpp's order of rows in the file."""
    wanted = expected(base, TOKENS, [(adapter, 1)], factors=False)
    assert distance(in_llama_cpp(base.file, written / "adapter.gguf"), wanted) < INT8
    assert distance(in_llama_cpp(base.file), wanted) > 0.3


def test_find_and_listed(base, adapter, written, tmp_path):
    folder = tmp_path / "packed"
    shutil.copytree(base.folder, folder)
    assert files.listed(folder) == []
    with pytest.raises(EdgepackError, match="has no adapter 'notes'") as error:
        files.find(folder, "notes")
    assert "it has none" in error.value.hint
    here = PackedBase.open(folder)
    files.write(files.place(folder, "notes"), adapter, here)
    files.write(files.place(folder, "b"), random_adapter(here, rank=9), here)
    (folder / "adapters/broken").mkdir()
    (folder / "adapters/not a name").mkdir()
    found = {one.name: one for one in files.listed(folder)}
    assert set(found) == {"notes", "b", "broken"}
    assert found["b"].about.rank == 10
    assert found["b"].problem is None
    assert "no adapter.json" in found["broken"].problem
    assert files.find(folder, "notes") == folder / "adapters/notes"
    assert found["notes"].about.bytes == sum(
        path.stat().st_size
        for path in (folder / "adapters/notes").rglob("*")
        if path.is_file() and path.name != "adapter.json"
    )
    about = folder / "adapters/b/adapter.json"
    content = json.loads(about.read_text())
    content["base"]["digest"] = "0" * 64
    about.write_text(json.dumps(content))
    found = {one.name: one for one in files.listed(folder)}
    assert "another base" in found["b"].problem


@pytest.mark.parametrize(
    "name", ["", "..", ".", "a/b", "a\\b", "../x", "/x", "a b", "x.", "é", "a\n", "x" * 65]
)
def test_names_are_no_paths(tmp_path, name):
    with pytest.raises(EdgepackError, match="no name for an adapter"):
        files.place(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "my-notes", "v1.2", "_x", "x" * 64])
def test_ordinary_names(tmp_path, name):
    assert files.place(tmp_path, name).parent == tmp_path / "adapters"


def test_the_identity_is_of_weights_only(base):
    assert BaseId.of("x", base.files).digest == base.identity.digest
    assert set(base.files) == {"base.gguf", "factors.gguf", "adapter/adapter_model.safetensors"}
