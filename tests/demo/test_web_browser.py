"""The browser variant in a headless Chromium: a real model, no server but one for files."""

from __future__ import annotations

import json
import shutil
import socket

import pytest

from edgepack.adapters import files
from edgepack.adapters.base import PackedBase
from edgepack.core.progress import finish
from edgepack.demo.web import MODELS, write_web
from edgepack.demo.web_models import Training
from edgepack.runtimes.chat import chat
from edgepack.runtimes.models import Model
from tests.support.adapters import packed
from tests.support.factored import smollm2
from tests.support.native import host_program, running
from tests.support.tuner import Tuning
from tests.support.web import browser, modules, served

pytestmark = pytest.mark.slow
ASKED, TOLD = "What is my dog called?", "Your dog is called Biscuit."
FRANCE = "What is the capital of France?"
LENGTH = 48  # of the note with SmolLM2's own system prompt: 45
TRAIN = {
    "adapter": "dog",
    "examples": [{"prompt": ASKED, "completion": TOLD}],
    "options": {"steps": 9, "learning_rate": 2e-3},
    "threads": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SmolLM2 in q4_0 with factors of rank 8."""
    return smollm2(tmp_path_factory.mktemp("model") / "smollm2")


@pytest.fixture(scope="module")
def site(folder, tmp_path_factory):
    """The folder of the page."""
    pytest.importorskip("onnx")
    out = tmp_path_factory.mktemp("web") / "site"
    given = {"modules": modules(), "training": Training(8, LENGTH)}
    assert finish(write_web([folder], out, **given)) == []
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A page with a random model, which chats nonsense and does not learn."""
    place = tmp_path_factory.mktemp("small")
    folder = packed(
        place / "model",
        compress={"format": "q4_0", "rank": 4, "factors": "f16", "embeddings": "q8_0"},
        calibrate={
            "source": "text.txt",
            "tokens": 512,
            "sequence_length": 64,
            "objective": "layer",
        },
        export={"measure": {"tokens": 0}},
    )
    finish(write_web([folder], place / "site", modules=modules(), training=None))
    return place / "site", folder


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def says(page, question, scales=None, tokens=10):
    """The answer, and its last event."""
    given = {"scales": scales or {}, "max_tokens": tokens, "temperature": 0}
    messages = [{"role": "user", "content": question}]
    events = page.ask("chat", "chat", messages=messages, **given)
    assert events[-1]["event"] == "ended", (events[-1], page.command(said=1)[-3:])
    return "".join(e["text"] for e in events if e["event"] == "text"), events[-1]


def test_it_answers_learns_is_switched_off_and_needs_no_network(site, folder, tmp_path):
    port = free_port()
    with browser(tmp_path / "profile") as page:
        with served(site, port=port) as (address, _):
            assert page.goto(address) is True
            model = page.ask("app", "models")[-1]["models"][0]["id"]
            loaded = page.ask("chat", "load", model=model, adapters=[], context=256, threads=1)[-1]
            assert loaded["event"] == "loaded", loaded
            assert "Paris" in says(page, FRANCE)[0]
            before, ended = says(page, ASKED)
            messages = [{"role": "user", "content": ASKED}]
            rendered = page.ask("chat", "render", messages=messages, add_generation_prompt=True)[-1]
            assert len(rendered["tokens"]) == ended["prompt_tokens"]
            learn(page, model)
            page.ask("chat", "adapters", model=model, adapters=["dog"])
            assert says(page, ASKED, {"dog": 1}, 16)[0] == TOLD
            assert says(page, ASKED, {"dog": 0})[0] == before
            check_file(page, model, folder, tmp_path / "adapter.gguf")
        assert page.goto(address) is True  # the server is gone
        loaded = page.ask("chat", "load", model=model, adapters=["dog"], context=256, threads=1)[-1]
        assert loaded["event"] == "loaded", loaded
        assert says(page, ASKED, {"dog": 1}, 16)[0] == TOLD


def learn(page, model):
    """Train, stopped once on the way."""
    planned = page.ask("tune", "plan", "planned", "failed", model=model, **TRAIN)[-1]
    assert (planned["examples"], planned["steps"], planned["resumed_at"]) == (1, 9, 0)
    first = page.start("tune", "train", model=model, **TRAIN)
    page.wait(first, "step", "failed")
    page.ask("tune", "cancel", request=first)
    ended = page.wait(first, "ended", "failed")[-1]
    assert ended["reason"] == "cancelled"
    assert page.ask("app", "jobs")[-1]["jobs"][0]["request"]["examples"] == TRAIN["examples"]
    events = page.ask("tune", "train", "ended", "failed", model=model, **TRAIN)
    assert events[0]["resumed_at"] == ended["steps"]
    assert events[-1]["reason"] == "steps"
    assert events[-1]["losses"][: ended["steps"]] == ended["losses"]
    assert events[-1]["losses"][-1] < 0.1 < events[-1]["losses"][0]
    assert page.ask("app", "jobs")[-1]["jobs"] == []


def check_file(page, model, folder, path):
    """The file that `share` hands out is edgepack's, and llama.cpp answers with it."""
    pytest.importorskip("llama_cpp")
    page.command(save=str(path))
    page.ask("app", "share", model=model, adapter="dog")
    page.evaluate("new Promise((done) => setTimeout(done, 1000))")
    base = PackedBase.open(folder)
    assert files.read(path, base).notes == ()
    with Model("tuned", base.file, base.factors, ((path, 1.0),)).open(256) as runtime:
        assert "".join(chat(runtime, [{"role": "user", "content": ASKED}], 16)) == TOLD


@pytest.mark.parametrize("headers", [True, False])
def test_the_page_is_isolated_with_and_without_headers(headers, small, tmp_path):
    with browser(tmp_path) as page, served(small[0], isolated=headers) as (address, asked):
        assert page.goto(address) is True
        starts = [path for path in asked if path in ("/", "/index.html")]
        assert page.evaluate("!!navigator.serviceWorker.controller") or headers
        assert starts


def taught(folder, place):
    """An adapter that edgepack-tune writes."""
    base = PackedBase.open(folder)
    options = {"steps": 16, "learning_rate": 2e-3, "replay": 0}
    case = Tuning(base, place, options, rows=TRAIN["examples"])
    marks = {files.NAME: base.identity.name, files.DIGEST: base.identity.digest}
    with running([host_program("tune")]) as worker:
        assert worker.ask("train", 300, **case.request(marks=marks))[-1]["event"] == "ended"
    return place / "adapter.gguf"


def test_files_that_a_person_chooses(site, folder, tmp_path):
    """A model with its factors, an adapter of the trainer for phones; broken files are refused in a
    sentence."""
    adapter = taught(folder, tmp_path)
    part = tmp_path / "part.gguf"
    part.write_bytes((folder / "base.gguf").read_bytes()[:-1000])
    with browser(tmp_path / "profile") as page, served(site) as (address, _):
        page.goto(address)

        def imports(*paths, **fields):
            page.command(choose=[str(path) for path in paths])
            return page.ask("app", "import", **fields)[-1]

        refused = imports(part, kind="model")
        assert refused["message"] == "the file is not whole: it ends before its header says"
        assert "no GGUF" in imports(folder / "manifest.json", kind="model")["message"]
        pair = (folder / "base.gguf", folder / "factors.gguf")
        own = imports(*pair, kind="model")["model"]
        models = [page.ask("app", "models")[-1]["models"][0]["id"], own]
        found = imports(adapter, kind="adapter", model=own)
        assert found["event"] == "imported", found
        assert imports(adapter, kind="adapter", model=models[0])["event"] == "imported"
        assert "no adapter" in imports(pair[0], kind="adapter", model=own)["message"]
        answers = {}
        for model in models:
            given = {"adapters": ["adapter"], "context": 256, "threads": 1}
            loaded = page.ask("chat", "load", model=model, **given)[-1]
            assert loaded["event"] == "loaded", loaded
            answers[model] = [says(page, FRANCE, {"adapter": scale}, 6)[0] for scale in (0, 1)]
            answers[model].append(says(page, ASKED, {"adapter": 1}, 16)[0])
        assert answers[own] == answers[models[0]]
        assert "Paris" in answers[own][0]
        assert answers[own][2] == TOLD
        assert page.ask("app", "remove", model=own)[-1]["event"] == "removed"
        assert len(page.ask("app", "models")[-1]["models"]) == 1
        failed = page.ask("chat", "load", model=own, adapters=[])[-1]
        assert failed["message"] == "there is no such model"


def test_a_new_version_takes_over_whole(small, tmp_path):
    """Pages of the old version keep their files; the next start has the new ones."""
    old, folder = small
    new = tmp_path / "new"
    finish(write_web([folder, folder], new, modules=modules(), training=None))
    place = tmp_path / "place"
    shutil.copytree(old, place)
    with browser(tmp_path / "profile") as page, served(place) as (address, _):
        page.goto(address)
        page.evaluate("navigator.serviceWorker.ready.then(() => true)")
        shutil.rmtree(place)
        shutil.copytree(new, place)
        page.goto(address)
        assert len(page.ask("app", "models")[-1]["models"]) == 1
        waiting = "navigator.serviceWorker.getRegistration().then(async (found) => {"
        waiting += " await found.update(); while (!found.waiting) await new Promise((done) =>"
        waiting += " setTimeout(done, 200)); return true; })"
        assert page.evaluate(waiting)
        page.goto(address)
        assert len(page.ask("app", "models")[-1]["models"]) == 2
        names = page.evaluate("caches.keys()")
        assert len([name for name in names if name.startswith("edgepack-page-")]) == 1
    assert len(json.loads((new / MODELS).read_text())["models"]) == 2
