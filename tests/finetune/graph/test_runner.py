"""Training with a graph: the losses are PyTorch's, a killed run goes on, the result is readable."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edgepack.core.progress import finish
from edgepack.errors import EdgepackError
from edgepack.model.decoder import Decoder
from edgepack.recover.adam import schedule
from tests.support.commands import fails, run
from tests.support.dying import dies_before
from tests.support.graphs import IDS, INT8, distance, logits, write
from tests.support.training import Reference, packed, rows

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime")
from edgepack.export.profiles import PROFILES, GraphOptions
from edgepack.finetune.graph.folder import export_training
from edgepack.finetune.graph.options import AdamW, Options
from edgepack.finetune.graph.runner import (
    TrainingSession,
    next_tokens,
    read_factors,
    train,
)

pytestmark = pytest.mark.slow

STEPS, RATE = 20, 5e-3
DECAY = AdamW(weight_decay=1.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A packed model, and a graph of it with rows of 16 tokens, one a step."""
    folder = tmp_path_factory.mktemp("made")
    checkpoint, weights = packed(folder, "qwen2")
    settings = Options(length=16, optimizer=DECAY)
    finish(export_training(folder / "out", folder / "training", settings))
    return folder, checkpoint, weights


def trained(made, **given):
    settings = {"steps": STEPS, "rate": RATE, "threads": 1} | given
    return finish(train(made[0] / "training", rows(), **settings))


def test_losses_are_those_of_pytorch(made):
    folder, checkpoint, weights = made
    found = trained(made)
    session = TrainingSession(folder / "training", threads=1)
    theta = session.first_state().theta
    reference = Reference(checkpoint, weights, "factors", session.about.matrices(), theta)
    values = list(reference.values.values())
    adam = torch.optim.AdamW(values, weight_decay=DECAY.weight_decay)
    losses, texts = [], rows()
    orders = [np.random.default_rng([0, e]).permutation(len(texts)) for e in range(5)]
    for step, index in enumerate(np.concatenate(orders)):
        adam.zero_grad()
        loss = reference.loss([texts[index]])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(values, DECAY.clip)
        adam.param_groups[0]["lr"] = RATE * schedule(step, STEPS)
        adam.step()
        losses.append(loss.item())
    assert np.allclose(found.losses, losses, rtol=0.01)
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    for (weight, part), value in reference.values.items():
        pair = found.adapters[weight]
        assert (pair[part == "L"] - value).norm() < 0.01 * value.norm()


def test_a_killed_run_goes_on_with_the_same_losses(made, tmp_path):
    whole = trained(made)
    state = tmp_path / "state.safetensors"
    kill = {"state_file": state, "every": 3}
    assert dies_before(4, lambda: trained(made, **kill))
    assert state.exists()
    left = train(made[0] / "training", rows(), steps=STEPS, rate=RATE, threads=1, **kill)
    assert sum(1 for _ in left) == STEPS - 6
    again = trained(made, **kill)
    assert not list(tmp_path.glob("*.tmp"))
    assert again.losses == whole.losses
    assert np.array_equal(again.theta, whole.theta)
    with pytest.raises(EdgepackError, match="the state of another run"):
        trained(made, **kill, seed=1)
    state.write_bytes(state.read_bytes()[:-8])
    with pytest.raises(EdgepackError, match="cannot read"):
        trained(made, **kill)


def test_a_batch_is_the_mean_over_all_labels(made, tmp_path):
    folder, checkpoint, weights = made
    finish(export_training(folder / "out", tmp_path / "t", Options(length=None, batch=3)))
    session = TrainingSession(tmp_path / "t", threads=1)
    state = session.first_state()
    reference = Reference(
        checkpoint, weights, "factors", session.about.matrices(), state.theta.copy()
    )
    batch = rows(3)
    assert session.step(state, batch, RATE) == pytest.approx(reference.loss(batch).item(), rel=1e-4)


def test_what_was_trained_runs_in_the_graph_for_browsers(made, tmp_path):
    """Its factors are inputs, read from the file that training writes."""
    _, checkpoint, weights = made
    found = trained(made)
    path = write(tmp_path / "web", checkpoint, weights, GraphOptions(128, PROFILES["web"]))
    before, file = logits(path), tmp_path / "web/factors.safetensors"
    names = {name: value.shape for name, value in load_file(file).items()}
    found.write_factors(file)
    assert {name: value.shape for name, value in load_file(file).items()} == names
    after = logits(path)
    dense = {
        name: torch.add(w.Q.dequantize(), found.adapters[name][1] @ found.adapters[name][0])
        for name, w in weights.items()
        if name in found.adapters
    }
    replaced = {n: (lambda n=n: dense.get(n, weights[n].Q.dequantize())) for n in weights}
    wanted = Decoder(checkpoint, replaced).logits(IDS)[0].numpy()
    assert distance(after, wanted) < INT8 < distance(before, wanted)
    for name, (A, B) in read_factors(file).items():
        assert torch.allclose(A, found.adapters[name][0], atol=1e-3)
        assert torch.allclose(B, found.adapters[name][1], atol=1e-3)


def test_labels_are_the_next_tokens():
    assert next_tokens([5, 6, 7]) == [6, 7, -100]
    assert next_tokens([5, 6, 7], [False, False, True]) == [-100, 7, -100]


ROWS = {
    "no rows": ([], "there are no rows"),
    "a long row": ([([1] * 17, [1] * 17)], "row 1 has 17 tokens, the graph takes 16"),
    "labels of another length": ([([1, 2], [1])], "row 1 has 2 tokens and 1 labels"),
    "an unknown token": ([([1, 10**6], [1, 2])], "row 1 has tokens"),
    "an unknown label": ([([1, 2], [1, -5])], "row 1 has labels"),
    "nothing that counts": ([([1, 2], [-100, -100])], "row 1 has no label"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_rows_that_do_not_fit(kind, made):
    wrong, said = ROWS[kind]
    with pytest.raises(EdgepackError, match=said):
        finish(train(made[0] / "training", wrong, steps=1, rate=RATE))


def test_a_rate_that_is_too_high_is_an_error(made):
    with pytest.raises(EdgepackError, match="step 2: the loss is"):
        trained(made, rate=1e30)


def test_damaged_folders(made, tmp_path):
    folder = shutil.copytree(made[0] / "training", tmp_path / "t")
    about = json.loads((folder / "training.json").read_text())

    def refused(said, **changes):
        (folder / "training.json").write_text(json.dumps(about | changes))
        with pytest.raises(EdgepackError, match=said):
            TrainingSession(folder).first_state()

    refused("size", size=5)
    refused("batch", batch=0)
    refused("does not begin at", parameters=about["parameters"][1:])
    (folder / "theta.f32").write_bytes(b"1234")
    refused("theta.f32 has 1 values")
    (folder / "training.onnx").write_bytes(b"no graph")
    refused("cannot load")


def test_the_command(made, tmp_path):
    out = tmp_path / "training"
    command = ["export-training", made[0] / "out", "--out"]
    result = run(*command, out, "--mode", "stack", "--length", 8)
    assert result.exit_code == 0
    assert "training.onnx" in result.stdout
    about = json.loads((out / "training.json").read_text())
    assert (about["mode"], about["length"]) == ("stack", 8)
    assert {"training.onnx", "train.html", "theta.f32"} <= {p.name for p in out.iterdir()}
    message, hint, _ = fails(*command, out)
    assert "exists" in message
    assert "--out" in hint
    message, _, _ = fails(
        "export-training", made[0] / "out", "--out", tmp_path / "x", "--length", 999
    )
    assert "256 positions" in message
    assert not (tmp_path / "x").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".partial")]


def test_without_factors_there_is_nothing_to_train(tmp_path):
    packed(tmp_path, rank=0)
    message, hint, _ = fails("export-training", tmp_path / "out", "--out", tmp_path / "t")
    assert "no factors" in message
    assert "--mode stack" in hint
