"""Distillation into scales, factors and norms: its gradient, its gain, and what it leaves alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edgepack.checkpoint import open_checkpoint
from edgepack.core import plugins
from edgepack.core.progress import finish
from edgepack.core.weight_files import load_tensors, save_tensors
from edgepack.core.weights import FactoredWeight
from edgepack.model.decoder import Decoder, Head
from edgepack.model.stream import Tokens
from edgepack.recover import trainable
from edgepack.recover.adam import schedule, unit_step
from edgepack.recover.distance import divergence
from edgepack.recover.distil import _student, read_norms, read_report, recover
from edgepack.recover.student import VALUE, Student
from edgepack.recover.training import Recovered, Settings, order
from tests.support.dying import dies_before, files
from tests.support.tiny import make_model

QUICK = Settings(12, tokens=512, scales=0.01, factors=0.03, norms=0.003, evaluate_every=4)


def pack(decoder: Decoder, folder: Path, form: str, rank: int = 0, factors: str = "f16") -> None:
    """What decompose would write: plain rounding and, with a rank, the leading singular vectors of
    what it leaves."""
    folder.mkdir()
    for spec in decoder.checkpoint.specs.values():
        if len(spec.shape) == 1:
            continue
        W = decoder.checkpoint.tensor(spec.name)
        inside = spec.block is not None
        weight = FactoredWeight(plugins.find("formats", form if inside else "q8_0").quantize(W))
        if rank and inside:
            U, S, V = torch.linalg.svd(W - weight.dense(), full_matrices=False)
            plugin = plugins.find("formats", factors)
            L, R = U[:, :rank] * S[:rank], V[:rank]
            weight = replace(weight, L=plugin.quantize(L), R=plugin.quantize(R))
        about = {"formats": weight.formats(), "rank": weight.rank, "method": "plain"}
        imatrix = {"imatrix": torch.rand(spec.shape[1])}
        save_tensors(folder / f"{spec.name}.safetensors", weight.tensors() | imatrix, about)


def some_tokens(vocabulary: int, length: int = 64) -> Tokens:
    ids = torch.randint(vocabulary, (40, length), generator=torch.Generator().manual_seed(3))
    return Tokens(ids[:32], ids[32:])


CASES = {
    "q2_0": ("llama", "q2_0", {}),
    "q4_1, untied": ("llama", "q4_1", {"tied": False}),
    "q2_0, rank, biases": ("qwen2", "q2_0", {"rank": 8}),
    "q4_0, rounded factors, norms of q and k": ("qwen3", "q4_0", {"rank": 32, "factors": "q4_0"}),
    "q2_k": ("llama", "q2_k", {"hidden": 256, "intermediate": 256, "layers": 1}),
    "q3_k": ("llama", "q3_k", {"hidden": 256, "intermediate": 256, "layers": 1}),
}


@pytest.fixture(scope="module", params=CASES)
def packed(request, tmp_path_factory) -> tuple[Decoder, Path]:
    return make_packed(tmp_path_factory.mktemp("packed"), request.param)


@pytest.fixture(scope="module")
def simple(tmp_path_factory) -> tuple[Decoder, Path]:
    return make_packed(tmp_path_factory.mktemp("simple"), "q2_0, rank, biases")


def make_packed(folder: Path, case: str) -> tuple[Decoder, Path]:
    family, form, options = CASES[case]
    ranked = {k: options[k] for k in ("rank", "factors") if k in options}
    model = {"intermediate": 128} | {k: v for k, v in options.items() if k not in ranked}
    make_model(folder / "model", family, **model)
    decoder = Decoder(open_checkpoint(str(folder / "model")))
    pack(decoder, folder / "weights", form, **ranked)
    return decoder, folder / "weights"


def packed_model(decoder: Decoder, folder: Path) -> Decoder:
    """A finished (or decomposed) folder as a model, through `FactoredWeight.dense` alone."""
    norms = read_norms(folder) if (folder / "norms.safetensors").exists() else {}
    names = [s.name for s in decoder.checkpoint.specs.values() if len(s.shape) > 1]
    dense = {name: lambda name=name: load(folder, name).dense() for name in names}
    return Decoder(decoder.checkpoint, dense | {n: lambda v=v: v for n, v in norms.items()})


def load(folder: Path, name: str) -> FactoredWeight:
    tensors, about = load_tensors(folder / f"{name}.safetensors")
    return FactoredWeight.from_tensors(tensors, about["formats"])


@torch.no_grad()
def mean_kl(decoder: Decoder, packed: Decoder, tokens: Tensor) -> float:
    log_p, log_q = (model.logits(tokens).double().log_softmax(-1) for model in (decoder, packed))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


# ---------------------------------------------------------------------------- the gradient


def whole_gradient(student: Student, tokens: Tensor) -> dict[tuple[str, str], Tensor]:
    """Plain autograd through the whole model at once."""
    checkpoint, leaves = student.decoder.checkpoint, {}
    weights = {}
    for spec in checkpoint.specs.values():
        masters = student.masters.get(spec.name, {})
        if len(spec.shape) == 1:
            parts = {VALUE: masters[VALUE].clone().requires_grad_()}
            weights[spec.name] = parts[VALUE]
        else:
            weight = student.current_weight(spec.name)
            parts = {p: v.requires_grad_() for p, v in trainable.values(weight, masters).items()}
            weights[spec.name] = trainable.dense(weight, parts)
        leaves |= {(spec.name, part): value for part, value in parts.items()}
    model = Decoder(checkpoint, {name: lambda w=w: w for name, w in weights.items()})
    log_p = student.decoder.logits(tokens).log_softmax(-1)
    kl = (
        functional.kl_div(
            model.logits(tokens).log_softmax(-1), log_p, log_target=True, reduction="none"
        )
        .sum(-1)
        .mean()
    )
    return dict(zip(leaves, torch.autograd.grad(kl, list(leaves.values())), strict=True))


def last_hidden(decoder: Decoder, tokens: Tensor) -> Tensor:
    x = decoder.embedding()[tokens]
    for i in range(decoder.dimensions.num_hidden_layers):
        x = decoder.block(i)(x)
    return x


@pytest.mark.slow
def test_the_streamed_gradient_is_that_of_the_whole_model(packed):
    decoder, weights = packed
    student = _student(decoder, weights, Settings(), torch.float32)
    tokens = some_tokens(decoder.dimensions.vocab_size, 300).train[:2]  # 600: several logit chunks
    target = last_hidden(decoder, tokens)
    kl, found = student.gradient(student.current_decoder().embed(tokens), target, decoder.head)
    assert kl == pytest.approx(mean_kl(decoder, packed_model(decoder, weights), tokens), rel=1e-5)
    expected = whole_gradient(student, tokens)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        assert gradient.norm() > 0
        torch.testing.assert_close(
            found[key], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max())
        )


# ---------------------------------------------------------------------------- what it gains


def run(packed: tuple[Decoder, Path], settings: Settings, folder: Path) -> Recovered:
    decoder, weights = packed
    folder.mkdir(exist_ok=True)
    tokens = some_tokens(decoder.dimensions.vocab_size)
    return finish(recover(decoder, decoder, weights, tokens, settings, folder))


@pytest.mark.slow
def test_it_comes_closer_to_the_original_at_the_same_codes_and_bytes(packed, tmp_path):
    decoder, weights = packed
    found = run(packed, QUICK, tmp_path / "out")
    held_out = some_tokens(decoder.dimensions.vocab_size).held_out
    before, after = (
        mean_kl(decoder, packed_model(decoder, f), held_out) for f in (weights, tmp_path / "out")
    )
    assert found.start == pytest.approx(before, rel=1e-4)
    assert found.best == pytest.approx(after, rel=1e-4)  # what is judged is what is written
    assert after < before
    assert (found.stopped, found.steps) == ("steps", 12)
    assert read_report(tmp_path / "out") == found
    assert sorted(files(tmp_path / "out")) == sorted([*files(weights), "norms.safetensors"])
    for path in weights.iterdir():
        (old, about), (new, same) = load_tensors(path), load_tensors(tmp_path / "out" / path.name)
        assert about == same
        assert {k: (v.shape, v.dtype) for k, v in old.items()} == {
            k: (v.shape, v.dtype) for k, v in new.items()
        }
        for key in ("Q.codes", "imatrix", "Q.grid.scales", "Q.grid.mins"):
            assert key not in old or torch.equal(old[key], new[key])
        if "embed" in path.name or "lm_head" in path.name:
            assert all(torch.equal(old[key], new[key]) for key in old)


@pytest.mark.slow
def test_two_bits_gain_much(tmp_path):
    packed = make_packed(tmp_path, "q2_0")
    settings = replace(QUICK, steps=40, scales=0.03, norms=0.03)
    found = run(packed, settings, tmp_path / "out")
    assert found.best < 0.7 * found.start


@pytest.mark.slow
@pytest.mark.parametrize("kind", trainable.KINDS)
def test_only_what_is_named_is_trained(simple, tmp_path, kind):
    decoder, weights = simple
    found = run(simple, replace(QUICK, train=(kind,)), tmp_path / "out")
    assert found.best < found.start
    changed = {
        key.split(".")[0]
        for path in weights.iterdir()
        for key, value in load_tensors(path)[0].items()
        if not torch.equal(value, load_tensors(tmp_path / "out" / path.name)[0][key])
    }
    norms = read_norms(tmp_path / "out")
    assert norms.keys() == {s.name for s in decoder.checkpoint.specs.values() if len(s.shape) == 1}
    moved = {n for n, v in norms.items() if not torch.equal(v, decoder.checkpoint.tensor(n))}
    expected = {"scales": ({"Q"}, set()), "factors": ({"L", "R"}, set())}
    assert (changed, moved) == expected.get(kind, (set(), set(norms)))


@pytest.mark.slow
@pytest.mark.parametrize("rate", [10.0, 1e30])
def test_nothing_worse_than_the_start_is_written(simple, tmp_path, rate):
    decoder, weights = simple
    settings = replace(QUICK, scales=rate, factors=rate, norms=rate, evaluate_every=2, patience=2)
    found = run(simple, settings, tmp_path / "out")
    assert (found.best_step, found.best) == (0, found.start)
    assert found.stopped in ("patience", "diverged")
    new = files(tmp_path / "out")
    assert all(new[name] == data for name, data in files(weights).items())
    norms = read_norms(tmp_path / "out")
    assert all(torch.equal(v, decoder.checkpoint.tensor(n)) for n, v in norms.items())


# ---------------------------------------------------------------------------- resume


@pytest.mark.slow
def test_killed_before_every_few_file_operations(simple, tmp_path):
    settings = replace(QUICK, steps=6, evaluate_every=2)
    run(simple, settings, tmp_path / "whole")
    runs = 0
    while dies_before(runs % 9, lambda: run(simple, settings, tmp_path / "killed")):
        runs += 1
        assert runs < 100
    assert runs >= 5
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


@pytest.mark.slow
def test_a_finished_folder_is_read(simple, tmp_path):
    found = run(simple, replace(QUICK, steps=2), tmp_path / "out")
    before = files(tmp_path / "out")
    assert run(simple, replace(QUICK, steps=2), tmp_path / "out") == found
    assert files(tmp_path / "out") == before


# ---------------------------------------------------------------------------- the pieces


@pytest.mark.slow
@pytest.mark.parametrize("name", plugins.names("formats"))
def test_masters_that_have_not_moved_are_stored_as_they_were(name):
    plugin = plugins.find("formats", name)
    W = torch.randn(8, 512, generator=torch.Generator().manual_seed(1))
    L, R = (plugins.find("formats", f).quantize(W) for f in ("q8_0", "q4_0"))
    weight = FactoredWeight(plugin.quantize(W), L, R)
    masters = trainable.masters(weight, trainable.KINDS)
    again = trainable.apply_masters(weight, masters)
    for key, value in weight.tensors().items():
        assert torch.equal(again.tensors()[key], value)


@pytest.mark.slow
@pytest.mark.parametrize("name", plugins.names("formats"))
def test_every_format_decodes_differentiably(name):
    """…and linearly in its fp16 fields: what a step along the gradient promises, it gives."""
    plugin = plugins.find("formats", name)
    W = torch.randn(8, 512, generator=torch.Generator().manual_seed(1))
    weight = FactoredWeight(plugin.quantize(W))
    parts = trainable.masters(weight, ["scales"])
    assert bool(parts) == (name not in ("f16", "mxfp4", "nvfp4"))  # no scale of f16
    if not parts:
        return
    assert torch.equal(trainable.dense(weight, parts), weight.dense())
    leaves = {part: value.requires_grad_() for part, value in parts.items()}
    out = trainable.dense(weight, leaves)
    gradients = torch.autograd.grad(out.square().sum() / 2, list(leaves.values()))
    step = sum(float((g * parts[p].detach()).sum()) for p, g in zip(parts, gradients, strict=True))
    assert step == pytest.approx(float(out.detach().square().sum()), rel=1e-4)


def test_factors_follow_their_masters_within_their_format():
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(2))
    start = FactoredWeight(*(plugins.find("formats", "q4_0").quantize(x) for _ in range(3)))
    for growth in (0.5, 1.0, 7.0):
        found = trainable.apply_masters(start, {"L": growth * x, "R": x}).L
        assert found is not None
        assert found.format == "q4_0"
        assert (found.dequantize() - growth * x).norm() < 0.12 * growth * x.norm()


def test_every_epoch_sees_every_sequence_once_in_an_order_of_its_own():
    epochs = torch.cat([order(12, 4, 0, step) for step in range(6)]).view(2, 12)
    assert all(torch.equal(epoch.sort().values, torch.arange(12)) for epoch in epochs)
    assert not torch.equal(*epochs)
    assert len(order(3, 8, 0, 1)) == 8  # a batch may be longer than an epoch


def test_the_rate_rises_and_falls():
    rates = [schedule(step, 40) for step in range(40)]
    assert rates[0] < rates[1] == max(rates) == 1.0
    assert 0 < rates[-1] < 0.01


def test_steps_are_shares_of_what_they_change():
    start = torch.tensor([[4.0, 0.0, 2.0, -2.0]])
    assert unit_step("Q.d", start).tolist() == [[4.0, 1.0, 2.0, 2.0]]
    assert unit_step("R", start).shape == (1, 1)
    assert unit_step("L", start).tolist() == [[4.0, 0.0, 2.0, 2.0]]


def test_the_divergence_of_a_model_from_itself_is_nothing(simple):
    head = Head(torch.ones(8), torch.randn(50, 8), replace(simple[0].dimensions, hidden_size=8))
    x = torch.randn(300, 8)
    assert divergence(head, head, x, x) == 0.0


def test_a_report_counts_what_gained_nothing():
    found = Recovered(steps=9, held_out=[(0, 2.0), (3, 1.0), (6, 1.5), (9, 1.0)])
    assert (found.start, found.best, found.best_step, found.setbacks) == (2.0, 1.0, 3, [6, 9])


def test_weights_beyond_the_room_are_read_again(simple):
    decoder, weights = simple
    names = [s.name for s in decoder.checkpoint.specs.values() if len(s.shape) > 1]
    sizes = [sum(t.nbytes for t in load(weights, name).tensors().values()) for name in names]
    reads = []
    cache = trainable.WeightCache(lambda name: reads.append(name) or load(weights, name), sizes[0])
    for _ in range(2):
        for name in names[:2]:
            cache(name)
    assert reads == [names[0], names[1], names[1]]
