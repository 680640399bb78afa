"""Training on a device that is not the CPU (`tests/support/pretend.py`): the same losses, a state
to go on from, the same text. Where there is CUDA or MPS, there too."""

import pytest
import torch

from edgepack.calibration import self_text
from edgepack.core import accelerator
from edgepack.core.accelerator import CPU
from edgepack.core.progress import finish
from edgepack.finetune import general
from edgepack.finetune.arithmetic import choose
from edgepack.finetune.frozen import FrozenModel
from edgepack.finetune.trained import Factors, Stack, targets
from edgepack.finetune.training import Data, Run
from edgepack.recipe.training import Finetune
from tests.pipeline.test_accelerators import on
from tests.support.bases import packed_base, random_examples
from tests.support.pretend import CALLS, NAME

pytestmark = pytest.mark.pretend

NEAR = 1e-4
DEVICES = ["narrow", *accelerator.COUNTS]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    families = {"llama": {"factors": "q4_0", "rank": 32}, "gemma4_text": {"form": "q8_0"}}
    place = tmp_path_factory.mktemp("bases")
    return {name: packed_base(place / name, name, **given)[0] for name, given in families.items()}


def start(base, path, device, mode, **given) -> Run:
    text = {"data": "d", "r": 4, "learning_rate": 2e-2, "batch_size": 2, "mode": mode, "steps": 3}
    options = Finetune(**text | given)
    arithmetic = choose(options.arithmetic, seed=0, device=device)
    model = FrozenModel(base.checkpoint, arithmetic, device=device)
    names = targets(base.checkpoint, options)
    trained = Factors.start(base, names)
    if mode == "stack":
        trained = Stack.start(base, names, options, {})
    trained.to(device)
    examples = random_examples()
    data = Data(examples, held_out=examples[:1], replay=examples[1:])
    return Run(model, trained, data, options, path, options.activations or "memory")


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize(
    ("family", "mode", "given"),
    [
        ("llama", "factors", {"activations": "disk"}),
        ("llama", "stack", {"lora_dropout": 0.2, "optimizer_states": "int8"}),
        ("llama", "stack", {"activations": "int4", "arithmetic": "int4"}),
        ("gemma4_text", "stack", {"replay": 0.5}),
    ],
)
def test_losses_are_those_of_the_cpu(bases, tmp_path, family, mode, given, kind):
    with on(kind) as device, torch.no_grad():
        runs = [start(bases[family], tmp_path / str(d), d, mode, **given) for d in (device, CPU)]
        CALLS.clear()
        found, wanted = (finish(run.train()) for run in runs)
        assert device.type != NAME or CALLS["mm"]
        near = {"rel": NEAR} if "arithmetic" not in given else {"rel": 0.2}
        assert found.losses == pytest.approx(wanted.losses, **near)
        assert found.held_out[-1][1] == pytest.approx(wanted.held_out[-1][1], **near)
        runs[0].trained.to(CPU)
        for name, lora in runs[0].trained.difference().items():
            assert lora.lora_A.device == CPU, name


def test_a_killed_run_goes_on_there(bases, tmp_path):
    with on("narrow") as device, torch.no_grad():
        whole = start(bases["llama"], tmp_path / "whole", device, "stack")
        wanted = finish(whole.train()).losses
        killed = start(bases["llama"], tmp_path / "killed", device, "stack")
        killed.step()
        killed.save()
        again = start(bases["llama"], tmp_path / "killed", device, "stack")
        assert finish(again.train()).losses == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("kind", DEVICES)
def test_the_packed_model_writes_there(bases, kind):
    """The same text, as random numbers are the CPU's."""
    texts = []
    with on(kind) as device, torch.no_grad():
        for place in (device, CPU):
            base = bases["llama"]
            model = FrozenModel(base.checkpoint, choose("float32", device=place), device=place)
            decoder = general.PackedDecoder(base, model)
            texts.append(finish(self_text.write(decoder, range(1, 5, 2), 4, 8, 0)))
    assert texts[0].device == CPU
    assert torch.equal(*texts)
