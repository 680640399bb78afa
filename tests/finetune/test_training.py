"""The loop: it learns, ends in time, and goes on after a kill as if nothing had happened."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from edgepack.core.progress import finish
from edgepack.errors import EdgepackError
from edgepack.finetune import training
from edgepack.finetune.arithmetic import choose
from edgepack.finetune.frozen import FrozenModel
from edgepack.finetune.trained import Factors, Stack, targets
from edgepack.finetune.training import Data, Run
from edgepack.recipe.training import Finetune
from tests.support.bases import Dense, packed_base, random_examples

pytestmark = pytest.mark.slow

RATE = 2e-2


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return packed_base(tmp_path_factory.mktemp("base"), factors="q4_0", rank=32)


def options(**given):
    return Finetune(**{"data": "d", "r": 4, "learning_rate": RATE, "batch_size": 2} | given)


def start(base, path, o, data=None):
    model = FrozenModel(base.checkpoint, choose(o.arithmetic, seed=o.seed))
    names = targets(base.checkpoint, o)
    trained = Factors.start(base, names) if o.mode == "factors" else Stack.start(base, names, o, {})
    data = data or Data(random_examples())
    return Run(model, trained, data, o, path)


@pytest.mark.parametrize("mode", ["stack", "factors"])
@pytest.mark.parametrize("states", ["float32", "int8"])
def test_the_loss_falls(base, tmp_path, mode, states):
    o = options(mode=mode, steps=24, optimizer_states=states)
    curve = finish(start(base[0], tmp_path / "state", o).train())
    assert len(curve.losses) == 24
    assert sum(curve.losses[-3:]) < 0.75 * sum(curve.losses[:3])
    assert (curve.stopped, curve.best) == ("steps", 24)


def test_after_twenty_steps_the_losses_are_those_of_pytorch(base, tmp_path):
    """torch.optim.AdamW on the dequantized model, all examples in every step."""
    packed, weights = base
    o = options(steps=20, batch_size=3, weight_decay=0.1, clip=1e9, warmup_ratio=0.2)
    run = start(packed, tmp_path / "state", o)
    other = start(packed, tmp_path / "other", o)
    leaves = {key: p.clone().requires_grad_() for key, p in other.trained.masters.items()}
    optimizer = torch.optim.AdamW(leaves.values(), lr=RATE, weight_decay=0.1)
    losses = []
    for step in range(20):
        for key, leaf in leaves.items():
            other.trained.masters[key] = leaf.detach()
        count = sum(example.answers for example in run.data.learnt)
        dense = Dense(packed, weights, other.trained.pairs)
        loss, found = dense.gradients(run.data.learnt)
        losses.append(loss / count)
        for name, (at_A, at_B) in found.items():
            leaves[f"{name} lora_A"].grad = at_A / count
            leaves[f"{name} lora_B"].grad = at_B / count
        for group in optimizer.param_groups:
            group["lr"] = RATE * training.schedule(step, 20, 0.2)
        optimizer.step()
    curve = finish(run.train())
    assert curve.losses == pytest.approx(losses, rel=0.01)
    assert losses[-1] < 0.8 * losses[0]


class KilledError(Exception):
    pass


@pytest.mark.parametrize("at", [1, 5, 11])
@pytest.mark.parametrize(
    "given",
    [
        {"lora_dropout": 0.2, "arithmetic": "int4"},
        {"mode": "factors", "optimizer_states": "int8"},
        {"replay": 1.0},
    ],
)
def test_a_killed_run_goes_on_to_the_same_losses(base, tmp_path, monkeypatch, at, given):
    o = options(steps=14, evaluate_every=4, patience=9, **given)
    texts = random_examples((16, 16), seed=4) if "replay" in given else ()
    data = Data(random_examples(), random_examples((12,), seed=2), texts)
    whole = start(base[0], tmp_path / "whole", o, data)
    finish(whole.train())
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0 if at % 2 else 1e9)
    cut = start(base[0], tmp_path / "cut", o, data)
    step = Run.step

    def dies(run):
        if run.curve.steps == at:
            raise KilledError
        step(run)

    monkeypatch.setattr(Run, "step", dies)
    with pytest.raises(KilledError):
        finish(cut.train())
    monkeypatch.setattr(Run, "step", step)
    again = start(base[0], tmp_path / "cut", o, data)
    curve = finish(again.train())
    assert curve.losses == whole.curve.losses
    assert curve.held_out == whole.curve.held_out
    for key, value in whole.trained.masters.items():
        assert torch.equal(value, again.trained.masters[key])


def test_it_ends_early_and_keeps_the_best(base, tmp_path):
    """What is held out contradicts what is learnt."""
    learnt = random_examples((12, 12))
    held_out = [replace(e, labels=(e.labels + 1).clamp(min=-100)) for e in learnt]
    held_out = [replace(e, labels=torch.where(e.labels < 0, -100, e.labels)) for e in held_out]
    o = options(steps=400, evaluate_every=5, patience=2)
    run = start(base[0], tmp_path / "state", o, Data(learnt, held_out))
    curve = finish(run.train())
    assert curve.stopped == "patience"
    assert curve.steps < 400
    best = min(loss for _, loss, _ in curve.held_out)
    assert run.score(held_out).loss == pytest.approx(best, rel=1e-6)


def test_general_text_holds_the_model_back(base, tmp_path):
    """With replay the tuned model stays nearer to the untuned one on other text."""
    texts = random_examples((24, 24, 24), seed=9)

    def moved(replay):
        o = options(steps=30, replay=replay)
        data = Data(random_examples(), replay=texts if replay else ())
        run = start(base[0], tmp_path / f"state-{replay}", o, data)
        finish(run.train())
        from edgepack.finetune.general import drift

        return drift(run.model, texts, run.trained.without, run.evaluated).kl

    assert moved(2.0) < 0.5 * moved(0.0)


def test_the_stated_step_sizes_are_those_of_the_schedule():
    found = [training.schedule(step, 20, 0.2) for step in range(20)]
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert max(found[4:]) <= 1
    assert found[-1] < 0.05


def test_a_gradient_that_is_not_finite_is_an_error(base, tmp_path):
    run = start(base[0], tmp_path / "state", options(steps=3))
    next(iter(run.trained.masters.values())).fill_(math.nan)
    with pytest.raises(EdgepackError, match="gradient of step 1 is not finite"):
        finish(run.train())
