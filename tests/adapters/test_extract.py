"""Adapters out of a fine-tune and its base."""

import json
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from edgepack.adapters import extract, gguf
from edgepack.adapters.difference import Choice, factor
from edgepack.checkpoint import open_checkpoint
from edgepack.core.progress import finish
from edgepack.errors import EdgepackError
from tests.support.commands import fails, run
from tests.support.ggufs import TOKENS, distance, in_llama_cpp
from tests.support.tiny import make_model, write_gguf

RANK = 4


def change(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def with_lora(tensors):
    """Add a known product of rank 4 to every linear weight."""
    torch.manual_seed(7)
    for name in sorted(tensors):
        W = tensors[name]
        if W.ndim == 2 and "embed" not in name:
            B, A = torch.randn(W.shape[0], RANK), torch.randn(RANK, W.shape[1])
            tensors[name] = W + 0.01 * B @ A


@pytest.fixture
def pair(tmp_path):
    """A base, and a fine-tune that differs from it by a LoRA."""
    for name in ("base", "tuned"):
        make_model(tmp_path / name, dtype=torch.float32, tied=False)
    change(tmp_path / "tuned", with_lora)
    return tmp_path / "tuned", tmp_path / "base"


def opened(pair):
    return [open_checkpoint(str(folder)) for folder in pair]


def test_the_best_pair_of_a_rank_is_a_truncated_svd():
    torch.manual_seed(0)
    for shape in ((24, 40), (40, 24)):
        delta = torch.randn(shape) @ torch.diag(torch.logspace(0, -4, shape[1]))
        U, S, Vh = torch.linalg.svd(delta.double())
        for rank in (1, 5, 24):
            lora = factor(delta, Choice(rank))
            best = (U[:, :rank] * S[:rank]) @ Vh[:rank]
            assert lora.lora_A.shape == (rank, shape[1])
            torch.testing.assert_close(lora.delta(), best.float(), rtol=0, atol=2e-6)
            left = float((delta - lora.delta()).norm()), float(S[rank:].norm())
            assert left[0] == pytest.approx(left[1], abs=2e-5)


def test_energy_chooses_the_least_rank_that_keeps_it():
    U = torch.linalg.qr(torch.randn(16, 16)).Q
    delta = (U * torch.tensor([4.0, 2.0, 1.0, *[0.0] * 13])) @ U.T
    for energy, rank in ((0.5, 1), (0.95, 2), (0.9999, 3)):
        assert factor(delta, Choice(16, energy)).rank == rank
    assert factor(delta, Choice(2, 1.0)).rank == 2
    assert factor(delta, Choice(16, 1.0)).rank == 3


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks for what transformers renamed
def test_a_known_lora_is_recovered_exactly(pair, tmp_path):
    """Up to float32's rounding of the sum, in PEFT's files and in the GGUF."""
    tuned, base = opened(pair)
    found = finish(extract.extract(tuned, base, Choice(RANK), "f32"))
    assert found.error < 2e-6
    assert found.left == ()
    assert len(found.weights) == 7 * 2 + 1
    assert {w.rank for w in found.weights} == {RANK}
    out = tmp_path / "out"
    files = extract.write(out, found, base, "f32")
    assert sorted(files) == sorted(path.name for path in out.iterdir())
    peft = pytest.importorskip("peft")
    load = transformers.LlamaForCausalLM.from_pretrained
    merged = peft.PeftModel.from_pretrained(load(pair[1]), out).merge_and_unload()
    for name, value in load(pair[0]).state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], value, rtol=0, atol=1e-6)
    loras, _ = gguf.read(out / extract.FILE, base)
    assert set(loras) == {w.name for w in found.weights}
    for name, lora in loras.items():
        delta = tuned.tensor(name) - base.tensor(name)
        torch.testing.assert_close(lora.delta(), delta, rtol=0, atol=1e-6)


def test_the_base_merged_with_its_adapter_is_the_fine_tune(pair, tmp_path, monkeypatch):
    """By `edgepack merge`, which adds adapters that follow a plus sign."""
    monkeypatch.chdir(tmp_path)
    options = ("--rank", RANK, "--dtype", "f32", "--out", "lora")
    assert run("extract-lora", "tuned", "base", *options).exit_code == 0
    models = "[{model: base+lora, parameters: {weight: 1}}]"
    (tmp_path / "m.yml").write_text(f"merge_method: linear\nmodels: {models}\n")
    assert run("merge", "m.yml", "again").exit_code == 0
    again, tuned = open_checkpoint("again"), open_checkpoint("tuned")
    for name in tuned.specs:
        torch.testing.assert_close(again.tensor(name), tuned.tensor(name), rtol=0, atol=1e-6)


@pytest.mark.llama
def test_llama_cpp_runs_the_base_with_its_adapter_as_the_fine_tune(pair, tmp_path):
    """q and k are in llama.cpp's order of rows in adapter.gguf."""
    tuned, base = opened(pair)
    found = finish(extract.extract(tuned, base, Choice(RANK), "f32"))
    extract.write(tmp_path / "out", found, base, "f32")
    write_gguf(tmp_path / "base.gguf", base)
    model = transformers.LlamaForCausalLM.from_pretrained(pair[0])
    with torch.no_grad():
        wanted = model(torch.tensor([TOKENS])).logits[0].numpy()
    adapter = tmp_path / "out" / extract.FILE
    assert distance(in_llama_cpp(tmp_path / "base.gguf", adapter), wanted) < 1e-3
    assert distance(in_llama_cpp(tmp_path / "base.gguf"), wanted) > 0.05


def test_singular_values_are_dropped_below_an_epsilon():
    U = torch.linalg.qr(torch.randn(16, 16)).Q
    delta = (U * torch.tensor([4.0, 2.0, 1.0, *[0.0] * 13])) @ U.T
    for epsilon, rank in ((0.5, 3), (1.5, 2), (3.0, 1), (5.0, 0)):
        assert factor(delta, Choice(16, epsilon=epsilon)).rank == rank
    assert factor(delta, Choice(1, epsilon=0.5)).rank == 1


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_singular_values_may_all_be_in_lora_a(shape):
    torch.manual_seed(0)
    delta = torch.randn(shape)
    even, one = factor(delta, Choice(8)), factor(delta, Choice(8, even=False))
    torch.testing.assert_close(one.delta(), even.delta(), rtol=0, atol=1e-5)
    torch.testing.assert_close(one.lora_B.T @ one.lora_B, torch.eye(8), rtol=0, atol=1e-5)
    S = torch.linalg.svdvals(delta)[:8]
    torch.testing.assert_close(one.lora_A.norm(dim=1), S, rtol=1e-5, atol=0)
    torch.testing.assert_close(even.lora_A.norm(dim=1), S.sqrt(), rtol=1e-5, atol=0)


def test_patterns_choose_the_weights(pair):
    wanted = extract.Wanted((re.compile("self_attn"), re.compile("up_proj$")), (re.compile("k_"),))
    found = finish(extract.extract(*opened(pair), Choice(RANK), "f32", wanted))
    names = {w.name.split(".", 3)[-1] for w in found.weights}
    assert names == {f"self_attn.{n}_proj.weight" for n in "qvo"} | {"mlp.up_proj.weight"}
    assert len(found.weights) == 8
    assert len(found.skipped) == 15 - 8
    assert found.left == ()
    assert found.as_json()["skipped"] == list(found.skipped)
    nothing = extract.Wanted((re.compile("visual"),))
    with pytest.raises(EdgepackError, match="no linear weight has a name that is asked for"):
        finish(extract.extract(*opened(pair), Choice(RANK), "f32", nothing))


def test_a_weight_that_an_epsilon_empties_is_left_out_and_counted(pair):
    def edit(tensors):
        tensors["lm_head.weight"] = load_file(pair[1] / "model.safetensors")["lm_head.weight"]
        tensors["lm_head.weight"][0, 0] += 0.01

    change(pair[0], edit)
    found = finish(extract.extract(*opened(pair), Choice(RANK, epsilon=0.1), "f32"))
    (left,) = found.left
    assert left.name == "lm_head.weight"
    assert left.why == "has no singular value above 0.1"
    assert 0 < found.error < 1e-2
    with pytest.raises(EdgepackError, match="differs by a singular value above 1000"):
        finish(extract.extract(*opened(pair), Choice(RANK, epsilon=1000.0)))


def test_mergekits_command_line_is_taken_as_it_is(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = ("--model", "tuned", "--base-model", "base", "--out-path", "out", "--max-rank", 32)
    more = ("--no-distribute-scale", "--sv-epsilon", 0.001, "-e", "lm_head", "-e", "k_proj")
    habits = ("--skip-undecomposable", "--save-module", "lm_head", "--no-embed-lora", "--cuda")
    result = run("extract-lora", *theirs, *more, *habits, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {w["rank"] for w in report["weights"]} == {RANK}
    assert len(report["weights"]) == 12
    assert report["skipped"] == [
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "lm_head.weight",
    ]
    for flag, words in (
        ("--skip-undecomposable", "is on by default"),
        ("--save-module", "does not exist here"),
        ("--no-embed-lora", "is so here"),
        ("--cuda", "does not exist here"),
    ):
        assert f"{flag}: {words}" in result.stderr
    assert "3 linear weights are left out, as the patterns say" in result.stderr
    B = load_file(tmp_path / "out/adapter_model.safetensors")[
        "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    ].float()
    torch.testing.assert_close(B.T @ B, torch.eye(RANK), rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("tuned", "base", "--out", "x", "-i", "a("), "--include-regex: 'a(' is no regular"),
        (("tuned", "base", "--out", "x", "--model", "tuned"), "FINETUNE: is given twice"),
        (("tuned", "--out", "x"), "BASE: is missing"),
        (("tuned", "base"), "--out: is missing"),
        (("tuned", "base", "more", "--out", "x"), "'more': is one name too many"),
        (("tuned", "base", "--out", "x", "--sv-epsilom", "1"), "no option --sv-epsilom"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(pair, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    error, _, code = fails("extract-lora", *options)
    assert message in error
    assert code == 2


@pytest.mark.parametrize("which", ["tuned", "base"])
def test_a_damaged_file_is_named_with_its_model(pair, tmp_path, monkeypatch, which):
    """Both models have a model.safetensors."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / which / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    error, *_ = fails("extract-lora", "tuned", "base", "--out", "x")
    assert error.startswith(f"error: {which}: model.safetensors")


def test_a_lower_rank_leaves_what_the_report_says(pair, tmp_path):
    tuned, base = opened(pair)
    found = finish(extract.extract(tuned, base, Choice(2)))
    assert 0.2 < found.error < 0.9
    for weight in found.weights[:3]:
        delta = tuned.tensor(weight.name) - base.tensor(weight.name)
        S = torch.linalg.svdvals(delta.double())
        assert weight.error == pytest.approx(float(S[2:].norm() / S.norm()), rel=1e-3)
        assert weight.change == pytest.approx(float(delta.norm() / base.tensor(weight.name).norm()))
    energy = finish(extract.extract(tuned, base, Choice(64, 0.9999)))
    assert {w.rank for w in energy.weights} == {RANK}
    assert energy.error < 1e-3  # float16


def test_what_no_lora_can_hold_is_said(pair):
    def edit(tensors):
        tensors["model.norm.weight"] *= 1.1
        embedding = tensors["model.embed_tokens.weight"]
        tensors["model.embed_tokens.weight"] = torch.cat([embedding, embedding[:3]])
        head = tensors["lm_head.weight"]
        tensors["lm_head.weight"] = torch.cat([head, head[:3]])

    change(pair[0], edit)
    config = json.loads((pair[0] / "config.json").read_text())
    config["vocab_size"] += 3
    (pair[0] / "config.json").write_text(json.dumps(config))
    found = finish(extract.extract(*opened(pair), Choice(RANK)))
    lines = extract.describe(found.left)
    assert len(found.weights) == 14
    assert any(
        line.startswith("model.embed_tokens.weight is [512, 64], [509, 64]") for line in lines
    )
    assert any(line.startswith("lm_head.weight is [512, 64]") for line in lines)
    assert "model.norm.weight is no linear weight, and differs by 10.00%" in lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the linear weights of other are those of base"),
        ({"intermediate": 64}, r"mlp.gate_proj.weight is \[64, 64\], \[96, 64\] in base"),
        ({"layers": 3}, "base has 2 layers, other 3"),
        ({"family": "qwen2"}, "other is a qwen2 model, base a llama model"),
    ],
)
def test_models_without_a_difference_to_take_are_refused(pair, tmp_path, options, message):
    make_model(tmp_path / "other", **({"dtype": torch.float32, "tied": False} | options))
    with pytest.raises(EdgepackError, match=message):
        finish(extract.extract(*opened((tmp_path / "other", pair[1])), Choice(RANK)))


def test_numbers_that_are_not_finite_are_refused(pair):
    change(pair[0], lambda tensors: tensors["lm_head.weight"][0].fill_(torch.nan))
    with pytest.raises(EdgepackError, match=r"lm_head.weight holds numbers that are not finite"):
        finish(extract.extract(*opened(pair), Choice(RANK)))


def test_the_command_writes_a_folder_and_prints_the_worst(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("extract-lora", "tuned", "base", "--rank", 2, "--out", "out")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["weight", "rank", "change", "left", "out"]
    shares = [float(line.split()[-1].rstrip("%")) for line in lines[1:6]]
    report = json.loads((tmp_path / "out/extract.json").read_text())
    assert shares[0] == pytest.approx(100 * max(w["error"] for w in report["weights"]), abs=0.01)
    assert shares == sorted(shares, reverse=True)
    assert "| model.layers.1.mlp.up_proj" in (tmp_path / "out/README.md").read_text()
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    assert str(tmp_path) not in "".join(
        p.read_text("latin-1") for p in (tmp_path / "out").iterdir()
    )
    error, hint, _ = fails("extract-lora", "tuned", "base", "--out", "out")
    assert "already exists" in error
    assert "--force" not in hint
    error, *_ = fails("extract-lora", "a", "b", "--rank", 2, "--max-rank", 3, "--out", "new")
    assert "--rank: give it or --max-rank" in error
    options = ("--max-rank", 32, "--energy", 0.999, "--json", "--out", "e")
    chosen = run("extract-lora", "tuned", "base", *options)
    assert {w["rank"] for w in json.loads(chosen.stdout)["weights"]} == {RANK}
