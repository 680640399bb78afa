"""Trainings through the relay: planned, run, stopped, gone on with, published."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from edgepack.runtimes.gguf_check import check_model
from tests.demo.asking import ASKED, NOTES, QUICK, text_of
from tests.demo.relaying import Page, relaying
from tests.support.commands import run

for package in ("llama_cpp", "starlette", "uvicorn"):
    pytest.importorskip(package)
pytestmark = [pytest.mark.llama, pytest.mark.slow]


def test_ten_thousand_notes_and_a_note_of_a_megabyte_are_planned(page, model):
    many = [{"prompt": f"fox {i}?", "completion": "dog"} for i in range(10_000)]
    asked = {"model": model, "adapter": "many", "options": QUICK}
    assert page.last("tune", "plan", examples=many, **asked)["examples"] == 10_000
    long = [{"text": "the quick brown fox " * 52_500}]
    event = page.last("tune", "plan", examples=long, **asked)
    assert event["event"] == "planned"
    assert event["examples"] > 1  # in pieces of sequence_length
    words = [{"prompt": "🦊 كلب؟", "completion": "‏كلب 🐕"}]
    assert page.last("tune", "plan", examples=words, **asked)["event"] == "planned"


def test_what_is_taught_becomes_an_adapter_of_the_folder(page, model, folder, relay):
    asked = {"model": model, "adapter": "taught", "examples": NOTES, "mode": "stack"}
    planned = page.last("tune", "plan", **asked, options=QUICK)
    assert planned["event"] == "planned"
    assert planned["steps"] == 3
    events = page.ask("tune", "train", **asked, options=QUICK)
    assert events[-1]["event"] == "ended", events[-1]
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3]
    assert page.last("app", "jobs")["jobs"] == []
    taught = folder / "adapters/taught"
    assert {path.name for path in taught.iterdir()} == {"adapter.gguf", "adapter.json", "peft"}
    about = json.loads((taught / "adapter.json").read_text())
    assert about["about"]["examples"] == 3
    said = run("chat", folder, "--adapter", "taught", "--prompt", "fox?", "--max-tokens", "2")
    assert said.exit_code == 0
    page.load(model, ["taught"])
    assert text_of(page.ask("chat", "chat", **ASKED, scales={"taught": 1}))
    status, _, content = relay.request("GET", f"/api/adapter?model={model}&adapter=taught")
    assert status == 200
    assert content == (taught / "adapter.gguf").read_bytes()
    again = page.last("tune", "train", **asked, options=QUICK)
    assert "already learnt" in again["message"]
    assert page.last("app", "remove", model=model, adapter="taught")["event"] == "removed"
    assert not taught.exists()


def test_replay_is_written_once(page, model, cache):
    asked = {"model": model, "adapter": "careful", "examples": NOTES, "mode": "stack"}
    options = QUICK | {"replay": 0.5, "steps": 2}
    events = page.ask("tune", "train", **asked, options=options)
    assert events[-1]["event"] == "ended", events[-1]
    assert any(event["event"] == "progress" for event in events)
    assert len(list((cache / "demo/replay").glob("*.json"))) == 1
    page.last("app", "remove", model=model, adapter="careful")


def test_a_training_outlives_the_relay(place, own_cache, folder):
    """Stopped, begun again, killed, gone on with: the losses are those of one run."""
    options = QUICK | {"steps": 600}
    asked = {"adapter": "long", "examples": NOTES, "mode": "stack", "options": options}
    work, whole = place / "killed", place / "whole"
    for copy in (work, whole):
        shutil.copytree(folder, copy)

    with relaying(own_cache, work) as relay:
        page = Page(relay)
        model = page.last("app", "models")["models"][0]["id"]
        name = page.post("tune", "train", model=model, **asked)
        reach(page, name, 60)
        assert "under way" in page.last("tune", "plan", model=model, **asked)["message"]
        assert page.last("app", "jobs")["jobs"][0]["running"]
        page.post("tune", "cancel", request=name)
        assert page.rest(name, "train")[-1]["reason"] == "cancelled"
        relay.process.kill()

    with relaying(own_cache, work) as relay:
        page = Page(relay)
        (job,) = page.last("app", "jobs")["jobs"]
        assert not job["running"]  # a person has stopped it
        name = page.post("tune", "train", **own(job["request"]))
        planned = reach(page, name, 200)[0]
        assert planned["resumed_at"] > 0
        (worker,) = relay.workers("tune")
        relay.process.kill()
        worker.wait(20)  # its input has ended

    with relaying(own_cache, work) as relay:
        page = Page(relay, first=0)
        end = time.monotonic() + 120
        while page.last("app", "jobs")["jobs"] and time.monotonic() < end:
            time.sleep(0.2)
        assert "planned" in [event["event"] for event in page.seen()]  # it went on by itself

    with relaying(own_cache, whole) as relay:
        page = Page(relay)
        model = page.last("app", "models")["models"][0]["id"]
        assert page.ask("tune", "train", model=model, **asked)[-1]["event"] == "ended"
    killed, never = (
        json.loads((copy / "adapters/long/adapter.json").read_text())["about"]["losses"]
        for copy in (work, whole)
    )
    assert len(never) == 600
    assert killed == pytest.approx(never, rel=1e-6)


def reach(page, name, step):
    """Events of a training until a step."""
    found = [page.next(name)]
    while found[-1].get("step", 0) < step:
        assert found[-1]["event"] != "failed", found[-1]
        found.append(page.next(name))
    return found


def own(request):
    """What the page says of a training that is kept."""
    return {key: value for key, value in request.items() if key not in ("id", "to", "do")}


def test_a_training_can_be_forgotten(page, model):
    asked = {"model": model, "adapter": "stopped", "examples": NOTES}
    name = page.post("tune", "train", **asked, options=QUICK | {"steps": 2000})
    reach(page, name, 1)
    assert "is being trained" in page.last("app", "forget", **own(asked))["message"]
    page.post("tune", "cancel", request=name)
    assert page.rest(name, "train")[-1]["reason"] == "cancelled"
    assert page.last("app", "forget", model=model, adapter="stopped")["event"] == "forgotten"
    assert page.last("app", "jobs")["jobs"] == []


def test_a_single_file_is_a_model_too(folder, own_cache, place):
    file = place / "alone/single.gguf"
    file.parent.mkdir()
    shutil.copy(folder / "base.gguf", file)
    check_model(file)
    with relaying(own_cache, file) as relay:
        page = Page(relay)
        (model,) = page.last("app", "models")["models"]
        assert model["name"] == "single"
        asked = {"model": model["id"], "adapter": "taught", "examples": NOTES, "options": QUICK}
        assert page.ask("tune", "train", **asked)[-1]["event"] == "ended"
        (model,) = page.last("app", "models")["models"]
        assert [one["name"] for one in model["adapters"]] == ["taught"]
        assert model["adapters"][0]["problem"] is None
    assert list(file.parent.iterdir()) == [file]
