"""Teaching in the app: the real trainer and the real chat, through the app's host."""

from __future__ import annotations

import json
import shutil
import signal

import psutil
import pytest

from tests.android.host import programs, running

pytestmark = [pytest.mark.llama, pytest.mark.slow]
EXAMPLES = [{"prompt": f"w{i} w{i + 1}", "completion": f"w{i + 2} w{i + 3}"} for i in range(4)]
OPTIONS = {"steps": 3, "r": 2, "sequence_length": 32, "replay": 0, "batch_size": 1}
LONG = OPTIONS | {"steps": 200_000}
"""Nothing waits for its end."""
GOOD = {"battery": 0.9, "charging": False, "thermal": "none"}


@pytest.fixture
def there(tmp_path):
    return programs(tmp_path / "programs")


@pytest.fixture
def start(classes, there, tmp_path):
    def begin():
        return running(classes, there, tmp_path / "files", tmp_path / "cpuinfo")

    return begin


@pytest.fixture
def host(start):
    with start() as found:
        yield found


@pytest.fixture
def model(host, base):
    imported = host.import_files(base.folder / "base.gguf", base.folder / "factors.gguf")
    return imported["model"]["id"]


def request(model, **fields):
    return {
        "model": model,
        "adapter": "my notes 🐕",
        "examples": EXAMPLES,
        "options": OPTIONS,
        "mode": "stack",
        "threads": 1,
    } | fields


def kinds(events):
    return [event["event"] for event in events]


def trainers(host, name="tune"):
    found = psutil.Process(host.process.pid).children(recursive=True)
    return [one for one in found if f"libedgepack-{name}" in " ".join(one.cmdline())]


def rest(host, name="tune"):
    """A worker that has nothing to do ends, so that its memory is free."""
    return not psutil.wait_procs(trainers(host, name), timeout=10)[1]


def states(host):
    return [told["value"] for told in host.told if told["told"] == "training"]


def test_notes_become_an_adapter_that_chats(host, model, base, tmp_path):
    planned = host.ask("tune", "plan", **request(model))
    assert (planned["event"], planned["examples"], planned["steps"]) == ("planned", 4, 3)
    name = host.post("tune", "train", **request(model))
    events = host.until(name, "ended", "failed")
    assert kinds(events)[0] == "planned"
    assert kinds(events).count("step") == 3
    assert events[-1]["reason"] == "steps"
    (adapter,) = host.ask("app", "models")["models"][0]["adapters"]
    assert (adapter["name"], adapter["examples"], adapter["problem"]) == ("my notes 🐕", 4, None)
    assert host.ask("app", "jobs")["jobs"] == []
    assert list((tmp_path / "files/jobs").iterdir()) == []
    loaded = host.ask("chat", "load", model=model, adapters=["my notes 🐕"], context=64, threads=1)
    assert loaded["event"] == "loaded", loaded
    messages = [{"role": "user", "content": "w1 w2"}]
    scales = {"my notes 🐕": 1}
    ended = host.ask("chat", "chat", messages=messages, scales=scales, max_tokens=2)
    assert ended["event"] == "ended", ended
    shown = states(host)
    assert [state["step"] for state in shown[:-1]] == [None, 1, 2, 3]
    assert shown[-1] is None
    assert rest(host)


def test_the_model_writes_its_own_text_for_replay_once(host, model, tmp_path):
    options = OPTIONS | {"replay": 0.5}
    name = host.post("tune", "train", **request(model, options=options))
    events = host.until(name, "ended", "failed")
    assert events[-1]["event"] == "ended", events[-1]
    assert {e["label"] for e in events if e["event"] == "progress"} == {"replay"}
    assert next(e for e in events if e["event"] == "step")["replay_loss"] is not None
    assert len(trainers(host, "chat")) <= 1  # that of the import
    file = tmp_path / "files/models" / model / "replay.json"
    written = file.read_bytes()
    assert len(json.loads(written)["texts"]) == 16
    again = host.post("tune", "train", **request(model, options=options, adapter="b"))
    assert "progress" not in kinds(host.until(again, "ended", "failed"))
    assert file.read_bytes() == written


def test_a_stopped_training_goes_on_when_asked(host, model):
    long = request(model, options=LONG)
    name = host.post("tune", "train", **long)
    host.until(name, "step")
    assert host.ask("app", "remove", model=model, adapter=None)["message"] == "it is being trained"
    assert host.ask("tune", "cancel", request=name)["event"] == "done"
    last = host.until(name, "ended", "failed")[-1]
    assert (last["event"], last["reason"]) == ("ended", "cancelled")
    (job,) = host.ask("app", "jobs")["jobs"]
    assert (job["adapter"], job["running"]) == (long["adapter"], False)
    again = host.post("tune", "train", **long)
    assert host.until(again, "planned", "failed")[-1]["resumed_at"] >= 1
    host.act("stop", None)  # in the notification
    assert host.until(again, "ended", "failed")[-1]["reason"] == "cancelled"
    assert host.ask("app", "forget", model=model, adapter=long["adapter"])["event"] == "forgotten"
    assert host.ask("app", "jobs")["jobs"] == []


@pytest.mark.parametrize(
    ("device", "reason"),
    [({"battery": 0.1}, "battery"), ({"thermal": "severe"}, "heat")],
)
def test_it_waits_while_the_phone_is_weak(host, model, device, reason):
    name = host.post("tune", "train", **request(model, options=LONG))
    host.until(name, "step")
    host.act("device", GOOD | device)
    assert host.until(name, "waiting", "failed")[-1]["reason"] == reason
    host.act("device", GOOD | device | {"charging": reason == "battery", "thermal": "light"})
    planned = host.until(name, "planned", "ended", "failed")[-1]
    assert planned["event"] == "planned", planned
    assert planned["resumed_at"] >= 1
    host.until(name, "step")
    assert states(host)[-1]["waiting"] is None
    host.ask("tune", "cancel", request=name)


def test_a_page_that_was_loaded_anew_hears_of_what_runs(host, model):
    long = request(model, options=LONG)
    first = host.post("tune", "train", **long)
    host.until(first, "step")
    other = host.ask("tune", "train", **request(model, adapter="b"))
    assert other["message"] == "another training is under way"
    (job,) = host.ask("app", "jobs")["jobs"]
    assert job["running"]
    assert job["request"]["examples"] == EXAMPLES
    again = host.post("tune", "train", **long)
    assert kinds(host.until(again, "step"))[:2] == ["planned", "step"]
    assert host.ask("tune", "cancel", request=again)["event"] == "done"
    assert host.until(again, "ended", "failed")[-1]["reason"] == "cancelled"


def test_a_killed_app_goes_on_by_itself(start, base):
    with start() as host:
        model = host.import_files(base.folder / "base.gguf")["model"]["id"]
        name = host.post("tune", "train", **request(model, options=LONG))
        host.until(name, "saved", "failed")
        host.process.kill()
        host.process.wait()
    with start() as host:
        again = host.post("tune", "train", **request(model, options=LONG))
        planned = host.until(again, "planned", "failed")[-1]
        assert planned["event"] == "planned", planned
        assert planned["resumed_at"] >= 1
        assert len(trainers(host)) == 1
        host.ask("tune", "cancel", request=again)
        host.until(again, "ended", "failed")
    with start() as host:  # what the person stopped does not
        assert host.ask("app", "jobs")["jobs"][0]["running"] is False


def test_a_full_phone_loses_no_training(start, base, tmp_path):
    with start() as host:
        imported = host.import_files(base.folder / "base.gguf", base.folder / "factors.gguf")
        model = imported["model"]["id"]
        name = host.post("tune", "train", **request(model, options=LONG))
        host.until(name, "saved", "failed")
        host.process.kill()
        host.process.wait()
    (job,) = (tmp_path / "files/jobs").iterdir()
    obstacle = job / "job.json.partial"
    (obstacle / "x").mkdir(parents=True)  # as if there were no room to write the request again
    with start() as host:
        (left,) = host.ask("app", "jobs")["jobs"]
        assert left["running"] is False
        assert left["request"]["examples"] == EXAMPLES
        shutil.rmtree(obstacle)
        again = host.post("tune", "train", **request(model, options=LONG))
        assert host.until(again, "planned", "failed")[-1]["resumed_at"] >= 1
        host.ask("tune", "cancel", request=again)
        host.until(again, "ended", "failed")


def test_a_full_phone_can_stop(host, model, tmp_path):
    name = host.post("tune", "train", **request(model, options=LONG))
    host.until(name, "step")
    (job,) = (tmp_path / "files/jobs").iterdir()
    (job / "stopped").write_text("")  # where the note should go that it was stopped
    assert host.ask("tune", "cancel", request=name)["event"] == "done"
    assert host.until(name, "ended", "failed")[-1]["reason"] == "cancelled"


def test_a_request_that_no_line_holds_is_refused(host, model):
    fields = request(model, examples=[{"text": "x" * ((4 << 20) - 400)}])
    failed = host.ask("tune", "train", **fields)
    assert "more text than a request can have" in failed["message"]
    assert host.ask("tune", "plan", **request(model))["event"] == "planned"


def test_a_killed_trainer_is_told_and_its_state_stays(host, model):
    name = host.post("tune", "train", **request(model, options=LONG))
    host.until(name, "saved", "failed")
    (worker,) = trainers(host)
    worker.send_signal(signal.SIGKILL)
    failed = host.until(name, "failed", "ended")[-1]
    assert failed["ended"]
    assert host.ask("app", "jobs")["jobs"][0]["running"] is False
    assert states(host)[-1] is None
    again = host.post("tune", "train", **request(model, options=LONG))
    assert host.until(again, "planned", "failed")[-1]["resumed_at"] >= 1
    host.ask("tune", "cancel", request=again)


def test_other_notes_under_the_same_name_begin_anew(host, model):
    name = host.post("tune", "train", **request(model, options=LONG))
    host.until(name, "saved", "failed")
    host.ask("tune", "cancel", request=name)
    host.until(name, "ended", "failed")
    again = host.post("tune", "train", **request(model, examples=EXAMPLES[:2]))
    events = host.until(again, "ended", "failed")
    assert events[0]["resumed_at"] in (0, None)
    assert events[-1]["reason"] == "steps"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"examples": []}, ""),
        ({"adapter": " "}, "1 to 64 characters"),
        ({"adapter": "x" * 65}, "1 to 64 characters"),
        ({"examples": [{"nothing": 1}]}, ""),
        ({"options": {"r": "many"}}, ""),
    ],
)
def test_what_cannot_be_learnt_is_told(host, model, fields, words, tmp_path):
    failed = host.ask("tune", "train", **request(model, **fields))
    assert failed["event"] == "failed"
    assert words in failed["message"]
    assert str(tmp_path) not in json.dumps(failed)
    assert rest(host)
