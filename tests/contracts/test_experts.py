"""Mixtures of experts: each expert is calibrated on the tokens that it gets, allocated as part of
its stack, and packed so that llama.cpp computes what its weights say; and what is refused."""

import json
from collections import defaultdict

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

import edgepack
from edgepack.allocate import stacks
from edgepack.allocate.knapsack import Option
from edgepack.calibration import experts, sweep
from edgepack.calibration.moments import Moments, load_hessian
from edgepack.checkpoint import open_checkpoint
from edgepack.checkpoint.gguf_header import GgufHeader
from edgepack.core.parts import stem
from edgepack.core.progress import finish
from edgepack.core.weight_files import load_weight
from edgepack.core.weights import WeightSpec
from edgepack.decompose.stage import Decompose
from edgepack.errors import CheckpointError, EdgepackError, RecipeError
from edgepack.model.decoder import Decoder
from edgepack.model.stream import Tokens
from edgepack.targets.onnx import Onnx
from tests.support.recipes import write_recipe, write_texts
from tests.support.tiny import make_model, write_gguf

FAMILIES = ("qwen3_moe", "lfm2_moe")
IDS = torch.arange(3, 67)
STACKS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


@pytest.fixture(scope="module", params=FAMILIES)
def place(request, tmp_path_factory, float32_products):
    """A folder with a model of two blocks, a text, and rows to learn."""
    folder = tmp_path_factory.mktemp(request.param)
    tied = request.param == "lfm2_moe"
    make_model(folder / "model", request.param, tied=tied, hidden=128, dtype=torch.float16)
    write_texts(folder, 12)
    return folder


@torch.no_grad()
def promised(plan):
    """Logits of our forward pass with the decomposed weights."""
    folder = plan.find(Decompose).folder
    dense = {n: lambda n=n: load_weight(folder, n)[0].dense() for n in plan.formats}
    return Decoder(plan.model, dense).logits(IDS[None])[0].numpy()


def through_llama(folder, *, factors):
    llama_cpp = pytest.importorskip("edgepack.runtimes.llama_cpp")
    adapter = folder / "factors.gguf" if factors else None
    with llama_cpp.LlamaCpp(folder / "base.gguf", adapter, context=64) as runtime:
        return runtime.logits(IDS.tolist())


def kl(original, other):
    p, q = (torch.as_tensor(x).double().log_softmax(-1) for x in (original, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.slow
def test_a_size_is_spent_stack_by_stack_and_runs_in_llama_cpp(place, tmp_path):
    recipe = write_recipe(place, "size", compress={"bits_per_weight": 5.0})
    artifact = edgepack.build(recipe, "gguf", out=tmp_path / "out")
    plan = edgepack.plan(recipe, "gguf")
    kinds = defaultdict(set)
    for name, fmt in plan.formats.items():
        if (spec := plan.model.specs[name]).expert is not None:
            kinds[spec.stack].add(fmt)
    assert kinds
    assert all(len(formats) == 1 for formats in kinds.values())
    wanted = promised(plan)
    found = through_llama(artifact.folder, factors=any(f.rank for f in plan.formats.values()))
    missed = np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert np.quantile(missed, 0.8) < 0.05  # a rounded activation may go to another expert
    with torch.no_grad():
        original = Decoder(plan.original).logits(IDS[None])[0]
    assert kl(original, found) < 0.3  # of a random model, on tokens that are no text
    assert (
        artifact.manifest["experts"]["experts"]
        == {"qwen3_moe": 8, "lfm2_moe": 4}[plan.model.architecture.name]
    )


@pytest.mark.slow
def test_factors_of_a_stack_are_an_adapter_of_three_dimensions(place, tmp_path):
    recipe = write_recipe(place, "factors", compress={"format": "q4_0", "rank": 8})
    artifact = edgepack.build(recipe, "gguf", out=tmp_path / "out")
    plan = edgepack.plan(recipe, "gguf")
    tensors = GgufHeader(artifact.folder / "factors.gguf").tensors
    assert tensors["blk.1.ffn_up_exps.weight.lora_a"].shape == (4, 8, 128)
    assert tensors["blk.1.ffn_up_exps.weight.lora_b"].shape == (4, 64, 8)
    wanted = promised(plan)
    found = through_llama(artifact.folder, factors=True)
    without = through_llama(artifact.folder, factors=False)
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)
    assert np.linalg.norm(without - wanted) > 0.1 * np.linalg.norm(wanted)


@pytest.mark.slow
def test_a_checkpoint_is_what_transformers_loads(place, tmp_path):
    artifact = edgepack.build(write_recipe(place, "plain"), "checkpoint", out=tmp_path / "out")
    load = transformers.AutoModelForCausalLM.from_pretrained
    with torch.no_grad():
        found = load(artifact.folder, dtype=torch.float32)(IDS[None]).logits[0]
        wanted = load(place / "model", dtype=torch.float32)(IDS[None]).logits[0]
    assert torch.allclose(found, wanted, atol=1e-4)
    assert wanted.std() > 0.3


def test_more_than_the_memory_holds_is_refused_before_the_work(place, tmp_path, monkeypatch):
    monkeypatch.setattr("edgepack.calibration.stage.available_memory", lambda: 1_000_000)
    other = {"source": "text.txt", "tokens": 512, "sequence_length": 64}
    recipe = write_recipe(place, "large", compress={"format": "q4_0"}, calibrate=other)
    with pytest.raises(EdgepackError, match=r"of all experts of a role takes .* 0\.0 GB are free"):
        edgepack.build(recipe, "gguf", out=tmp_path / "out")


def test_the_router_stays_float_and_stacks_are_read_back(place, tmp_path):
    original = open_checkpoint(str(place / "model"))
    write_gguf(tmp_path / "model.gguf", original, "Q8_0")
    header = GgufHeader(tmp_path / "model.gguf")
    assert header.tensors["blk.1.ffn_gate_inp.weight"].kind.name == "F32"
    assert header.tensors["blk.1.ffn_down_exps.weight"].shape == (4, 128, 64)
    again = open_checkpoint(str(tmp_path / "model.gguf"))
    assert again.dimensions == original.dimensions
    for name, spec in again.specs.items():
        if spec.expert is None:
            continue
        codes, values = again.quantized(name), again.tensor(name)
        assert torch.equal(codes.dequantize(), values)
        assert torch.equal(again.stored(name)[0], codes.plugin.pack(codes))
        rows, kind = again.stored_rows(name, range(3, 7))
        assert (kind, torch.equal(rows, again.stored(name)[0][3:7])) == ("Q8_0", True)
        wanted = original.tensor(name)
        assert (values - wanted).norm() < 0.01 * wanted.norm()


# ------------------------------------------------------------------------ calibration


def test_an_expert_is_calibrated_on_its_own_tokens(tmp_path):
    """H of every expert against autograd on the block's weights, drawn towards the others by hand;
    one is never met, because the router is biased against it."""
    make_model(tmp_path / "model", "lfm2_moe", layers=2, dtype=torch.float32)
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    name = checkpoint.architecture.hf_name("exp_probs_b.bias", 1)
    bias = torch.tensor([-9.0, 0.0, 0.0, 0.0])
    decoder = Decoder(checkpoint, {name: lambda: bias})
    ids = torch.randint(3, 290, (12, 40), generator=torch.Generator().manual_seed(1))
    tokens = Tokens(ids[:9], ids[9:])
    finish(sweep.guided_hessians(decoder, tokens, tmp_path, seed=3))
    inputs = inputs_of_experts(decoder, tokens)
    for role in STACKS:
        wanted = drawn({e: inputs[f"{role}.{e}"] for e in (1, 2, 3)}, len(ids[:9]) * 40)
        for expert in range(4):
            found = load_hessian(tmp_path / "1", f"{role}.{expert}").imatrix.double()
            assert torch.allclose(found, wanted[expert], rtol=1e-3)


@torch.no_grad()
def inputs_of_experts(decoder, tokens):
    """Σ x² and the number of calibration tokens of every expert's weight of the second block."""
    seen = {}
    x = decoder.embed(tokens.train).bfloat16().float()
    x = decoder.block(0)(x).bfloat16().float()
    block = decoder.block(1)

    def linear(role, x):
        if stem(role) in STACKS:
            square, count = seen.get(role, (0.0, 0))
            seen[role] = square + x.double().square().sum(0), count + len(x)
        return block.linear(role, x)

    block(x, linear=linear)
    return seen


def drawn(inputs, tokens):
    """The means of x², drawn together."""
    squares = sum(square for square, _ in inputs.values())
    mean = squares / sum(count for _, count in inputs.values())
    found = {}
    for expert in range(4):
        square, count = inputs.get(expert, (torch.zeros_like(mean), 0))
        own = (square + len(mean) * mean) / (count + len(mean))
        found[expert] = own * (count + 1) / tokens
    return found


def test_experts_with_many_tokens_keep_their_own_moments(tmp_path):
    generator = torch.Generator().manual_seed(0)
    moments, names = Moments(), [f"ffn_up_exps.{i}" for i in range(3)]
    many, few = torch.randn(4000, 8, generator=generator), torch.randn(2, 8, generator=generator)
    for held_out in (False, True):
        moments.add(names[0], 3 * many, None, held_out)
        moments.add(names[1], few, None, held_out)
        moments.count(4002, held_out)
    before = moments.sums[names[0], False].dense()
    experts.draw_together(moments, names)
    found = moments.hessians()
    assert torch.allclose(moments.sums[names[0], False].dense(), before, rtol=0.02)
    for name, count in ((names[1], 2), (names[2], 0)):  # nearly the mean of all, and all of it
        wanted = before / 4002 * (count + 1) / 4002
        assert torch.allclose(found[name].train, wanted, rtol=0.3, atol=0.1 * wanted.max())
    met = {name: moments.met.get((name, False), 0) for name in names}
    said = {"experts": 3, "few_tokens": 2, "no_tokens": 1}
    assert experts.few(met, dict.fromkeys(names, 8)) == said
    for name in names:
        moments.save(tmp_path / name, name)
    assert experts.about(tmp_path, names) == said


def test_experts_of_a_stack_get_one_choice():
    specs = {
        name: WeightSpec(name, (8, 8), "F32", "ffn_up_exps", 0, expert)
        for expert, name in enumerate(("a", "b"))
    } | {"c": WeightSpec("c", (8, 8), "F32", "attn_q", 0)}
    small, large = Option("q4_0", 0, 4, 3.0), Option("q8_0", 0, 8, 1.0)
    options = {"a": [small, large], "b": [large, small], "c": [small]}
    together = stacks.together(stacks.alike(options, specs), specs)
    (stack,) = (key for key in together if key != "c")
    assert {o.format: (o.nbytes, o.cost) for o in together[stack]} == {
        "q4_0": (8, 6.0),
        "q8_0": (16, 2.0),
    }
    chosen = {stack: Option("q8_0", 0, 16, 2.0), "c": small}
    assert stacks.apart(chosen, options, specs) == {"a": large, "b": large, "c": small}
    with pytest.raises(RecipeError, match="no format in common"):
        stacks.alike(options | {"b": [Option("q5_0", 0, 5, 2.0)]}, specs)


# ------------------------------------------------------------------------ refusals


def test_one_expert_cannot_have_a_format_of_its_own(place):
    overrides = {"*.experts.1.*": {"format": "q8_0"}}
    recipe = write_recipe(place, "own", compress={"format": "q4_0", "overrides": overrides})
    with pytest.raises(EdgepackError, match="have several formats"):
        edgepack.plan(recipe, "gguf")


def test_experts_are_not_tuned_and_attention_is(place, tmp_path):
    compress = {"format": "q8_0"}
    tune = {"data": "rows.jsonl", "steps": 4, "learning_rate": 0.01}
    experts_too = {**tune, "target_modules": ".*experts.*"}
    recipe = write_recipe(place, "all", compress=compress, finetune=experts_too)
    with pytest.raises(EdgepackError, match="is an expert's"):
        edgepack.build(recipe, "gguf", out=tmp_path / "all")
    recipe = write_recipe(place, "some", compress=compress, finetune=tune)
    artifact = edgepack.build(recipe, "gguf", out=tmp_path / "some")
    adapter = next((artifact.folder / "adapters").rglob("*.safetensors"))
    with safe_open(adapter, framework="pt") as file:
        names = set(file.keys())
    assert names
    assert not any(".experts." in name for name in names)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"slice": {"method": "global", "width": 64}}, "experts, whose weights are not sliced"),
        ({"compress": {"format": "q4_0", "pad_width": 256}}, "whose widths are not padded"),
    ],
)
def test_what_experts_cannot_have_is_refused(place, sections, message):
    with pytest.raises(RecipeError, match=message):
        edgepack.plan(write_recipe(place, "refused", **sections), "gguf")


def test_graphs_have_no_experts(place):
    family = open_checkpoint(str(place / "model")).architecture
    assert "experts" in Onnx.why_not(family)
    with pytest.raises(RecipeError, match="experts, which graphs do not have"):
        edgepack.plan(write_recipe(place, "graph"), "onnx")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts_per_tok": 9}, "9 of 4 experts"),
        ({"moe_intermediate_size": 0}, "experts of width 0"),
        ({"num_experts": 90_000, "num_local_experts": 90_000}, "90000 experts in"),
        ({"norm_topk_prob": False}, "norm_topk_prob False is not supported"),
    ],
)
def test_configurations_that_do_not_fit_are_one_line(place, tmp_path, changes, message):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (place / "model").iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((place / "model" / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(folder))
