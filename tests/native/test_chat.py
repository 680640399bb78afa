"""edgepack-chat: what it answers is what edgepack's own runtime answers, and what is asked for."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import closing
from pathlib import Path

import pytest

from edgepack.adapters import files
from edgepack.adapters.gguf_factors import GgufFactors
from edgepack.checkpoint import open_checkpoint
from edgepack.runtimes.base import Sampling
from edgepack.runtimes.chat import chat
from tests.support.adapters import changed_factors, random_adapter
from tests.support.bases import packed_base
from tests.support.ggufs import rewritten
from tests.support.native import host_program, running
from tests.support.tiny import make_model, write_gguf

pytestmark = [pytest.mark.slow, pytest.mark.llama]

FAMILIES = ("llama", "qwen2", "qwen3")
HELLO = [{"role": "user", "content": "The quick brown fox"}]
GREEDY = {"max_tokens": 24}
CONTEXT = 256


@pytest.fixture(scope="module")
def program():
    return host_program("chat")


@pytest.fixture(scope="module")
def worker(program):
    with running([program]) as found:
        ready = found.next()
        assert ready["event"] == "ready"
        assert (ready["id"], ready["program"], ready["version"]) == (None, "chat", 1)
        assert "llama.cpp" in ready["runtime"]
        assert ready["features"]
        assert ready["memory"]["peak"] > 0
        yield found
        assert found.close() == 0


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {family: packed_base(folder / family, family)[0] for family in FAMILIES}


@pytest.fixture(scope="module")
def base(bases):
    return bases["llama"]


@pytest.fixture(scope="module")
def adapters(base):
    """name → the file of an adapter that changes answers."""
    found = {}
    for name, seed in (("a", 1), ("b", 2)):
        place = files.place(base.folder, name)
        files.write(place, random_adapter(base, seed=seed), base, dtype="f32")
        found[name] = str(place / files.FILE)
    return found


def load(worker, base, adapters=None, context=0, **more):
    """Load a base with its factors; the last event."""
    factors = base.factors and str(base.factors)
    given = {"model": str(base.file), "factors": factors, "adapters": adapters or {}}
    return worker.ask("load", **given | {"context": context, "threads": 1} | more)[-1]


@pytest.fixture
def loaded(worker, base, adapters):
    event = load(worker, base, adapters)
    assert event["event"] == "loaded"
    return worker


def said(events):
    """What was answered in all."""
    return "".join(event["text"] for event in events if event["event"] == "text")


def ask(worker, messages=HELLO, **options):
    """(the answer, the event at its start, the one at its end)."""
    events = worker.ask("chat", messages=messages, **GREEDY | options)
    assert events[0]["event"] == "started", events
    assert events[-1]["event"] == "ended", events
    return said(events), events[0], events[-1]


def in_python(base, messages=HELLO, sampling=None, adapters=(), max_tokens=24):
    from edgepack.runtimes.llama_cpp import LlamaCpp

    scaled = [(Path(place), scale) for place, scale in adapters]
    with closing(LlamaCpp(base.file, base.factors, CONTEXT, 1, adapters=scaled)) as runtime:
        return "".join(chat(runtime, messages, max_tokens, sampling or Sampling()))


def failed(events, *, hint=None):
    """The message of a request that failed."""
    assert events[-1]["event"] == "failed", events
    if hint is not None:
        assert hint in events[-1]["hint"]
    return events[-1]["message"]


def test_a_file_is_inspected_by_its_header(worker, base, adapters):
    model = worker.ask("inspect", file=str(base.file))[-1]
    assert (model["event"], model["kind"]) == ("inspected", "model")
    assert model["architecture"] == "llama"
    assert model["bytes"] == base.file.stat().st_size
    assert model["context_length"] == 256
    assert model["chat_template"] is True
    assert model["base_digest"] is None
    assert 50_000 < model["parameters"] < 200_000
    factors = worker.ask("inspect", file=str(base.factors))[-1]
    assert (factors["kind"], factors["base_digest"]) == ("factors", None)
    adapter = worker.ask("inspect", file=adapters["a"])[-1]
    assert (adapter["kind"], adapter["base_digest"]) == ("adapter", base.identity.digest)


def test_what_is_loaded_is_said(worker, base):
    events = worker.ask("load", model=str(base.file), context=0, threads=0)
    shares = [event["share"] for event in events[:-1]]
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)
    last = events[-1]
    assert (last["event"], last["architecture"], last["context"]) == ("loaded", "llama", 256)
    assert last["chat_template"] is True
    assert last["threads"] == fast_cores_less_one()
    assert last["memory"]["anonymous"] > 0
    assert 0 < last["seconds"] < 30


def fast_cores_less_one():
    """Cores whose highest clock is within 20 % of the highest one, less one."""
    clocks = []
    for cpu in os.sched_getaffinity(0):
        try:
            clock = Path(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq")
            clocks.append(int(clock.read_text()))
        except OSError:
            clocks.append(0)
    return max(1, sum(clock >= 0.8 * max(clocks) for clock in clocks) - 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_likeliest_answer_is_that_of_edgepacks_runtime(worker, bases, family):
    base = bases[family]
    assert load(worker, base)["event"] == "loaded"
    answer, started, ended = ask(worker)
    assert answer == in_python(base)
    assert len(answer) > 10
    assert (started["dropped_messages"], started["cached_tokens"]) == (0, 0)
    assert ended["prompt_tokens"] == started["prompt_tokens"] > 5
    assert ended["reason"] in {"length", "end"}
    assert ended["tokens"] == 24 or ended["reason"] == "end"
    assert ended["first_token_seconds"] > 0
    assert ended["prompt_tokens_per_second"] > 0
    assert ended["tokens_per_second"] > 0
    assert set(ended["memory"]) == {"anonymous", "mapped", "peak"}


def test_factors_count(worker, base):
    load(worker, base)
    with_factors = ask(worker)[0]
    load(worker, base, factors=None)
    assert ask(worker)[0] != with_factors


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0, "seed": 5},
        {"temperature": 0.7, "seed": 6, "top_k": 5},
        {"temperature": 1.5, "seed": 7, "top_k": 100, "top_p": 0.5},
        {"temperature": 0.0, "repeat_penalty": 1.5},
        {"temperature": 1.0, "seed": 8, "repeat_penalty": 1.3},
    ],
)
def test_samples_are_those_of_edgepacks_runtime(loaded, base, options):
    assert ask(loaded, **options)[0] == in_python(base, sampling=Sampling(**options))


def test_min_p_leaves_out_what_is_unlikely(loaded):
    options = {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "seed": 3}
    likeliest = ask(loaded)[0]
    assert ask(loaded, **options)[0] != likeliest
    assert ask(loaded, **options, min_p=1.0)[0] == likeliest


def test_what_was_run_before_is_not_run_again(loaded):
    first, started, _ = ask(loaded)
    again, second, ended = ask(loaded)
    assert again == first
    assert second["cached_tokens"] == started["prompt_tokens"] - 1
    assert ended["cached_tokens"] == second["cached_tokens"]
    longer = [*HELLO, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}]
    _, follows, _ = ask(loaded, longer)
    assert started["prompt_tokens"] - 4 <= follows["cached_tokens"] < follows["prompt_tokens"]
    other = ask(loaded, [{"role": "user", "content": "x"}])[1]
    assert other["cached_tokens"] < other["prompt_tokens"] - 1
    assert ask(loaded)[0] == first


def test_adapters_are_switched_by_each_request(loaded, base, adapters):
    plain = ask(loaded)[0]
    assert plain == in_python(base)
    for scales in ({"a": 1.0}, {"a": 0.5, "b": -1.0}, {"b": 1}):
        wanted = in_python(base, adapters=[(adapters[n], s) for n, s in scales.items()])
        answer, started, _ = ask(loaded, scales=scales)
        assert answer == wanted != plain
        assert started["cached_tokens"] == 0
        assert ask(loaded, scales=scales)[1]["cached_tokens"] > 0
    assert ask(loaded, scales={"a": 0, "b": 0.0})[0] == plain


def test_adapters_come_and_go(worker, base, adapters, tmp_path):
    load(worker, base)
    plain = ask(worker)[0]
    assert "no adapter a" in failed(worker.ask("chat", messages=HELLO, scales={"a": 1}))
    place = tmp_path / "moves.gguf"
    shutil.copy(adapters["a"], place)
    event = worker.ask("adapters", adapters={"a": str(place), "b": adapters["b"]})[-1]
    assert (event["event"], event["names"]) == ("adapters", ["a", "b"])
    first = ask(worker, scales={"a": 1})[0]
    assert first != plain
    shutil.copy(adapters["b"], tmp_path / "new.gguf")
    (tmp_path / "new.gguf").replace(place)  # trained again, at the same place
    worker.ask("adapters", adapters={"a": str(place)})
    second = ask(worker, scales={"a": 1})[0]
    assert second != first
    assert second == in_python(base, adapters=[(adapters["b"], 1.0)])
    message = failed(worker.ask("adapters", adapters={"c": str(tmp_path / "none.gguf")}))
    assert message == "the adapter c is not there"
    assert ask(worker, scales={"a": 1})[0] == second  # as before
    assert worker.ask("adapters", adapters={})[-1]["names"] == []
    assert ask(worker)[0] == plain


def test_an_adapter_that_holds_the_factors_takes_their_place(worker, base):
    place = files.place(base.folder, "factors")
    files.write(place, changed_factors(base), base, dtype="f32")
    tuned, delta = str(place / files.TUNED), str(place / files.FILE)
    assert GgufFactors(place / files.TUNED, base.checkpoint).ranks == base.ranks
    load(worker, base, {"tuned": tuned, "delta": delta})
    for scale in (1.0, 0.5):
        wanted = in_python(base, adapters=[(tuned, scale)])
        assert ask(worker, scales={"tuned": scale})[0] == wanted
    assert ask(worker, scales={"delta": 1.0})[0] != ask(worker)[0]


@pytest.mark.parametrize("change", [{"family": "qwen3"}, {"hidden": 128}, {"layers": 1}])
def test_an_adapter_of_another_model_is_named(worker, base, adapters, tmp_path, change):
    other = packed_base(tmp_path, **{"family": "llama"} | change)[0]
    place = files.place(other.folder, "mine")
    files.write(place, random_adapter(other), other)
    load(worker, base if change.get("layers") != 1 else other)
    theirs = adapters["a"] if change.get("layers") == 1 else str(place / files.FILE)
    message = failed(worker.ask("adapters", adapters={"notes": theirs}))
    assert message.startswith("the adapter notes belongs to another model: ")
    assert str(tmp_path) not in message
    assert ask(worker)[0]
    events = worker.ask("load", model=str(base.file), factors=str(other.factors))
    if change.get("layers") != 1:
        assert failed(events).startswith("the file of factors belongs to another model: ")


def test_a_model_is_no_adapter_and_an_adapter_no_model(worker, base, adapters):
    load(worker, base)
    message = failed(worker.ask("adapters", adapters={"x": str(base.file)}))
    assert message == "the adapter x is no adapter"
    message = failed(worker.ask("load", model=adapters["a"]))
    assert message == "the model is an adapter, not a model"
    assert ask(worker)[0]  # what was loaded stays


def test_an_answer_stops_before_a_stop_text(loaded):
    whole = ask(loaded)[0]
    for start in (3, 7, len(whole) // 2):
        stop = whole[start : start + 3]
        answer, _, ended = ask(loaded, stop=["never said", stop])
        assert answer == whole[: whole.index(stop)]
        assert ended["reason"] == "stop"
        assert ended["tokens"] <= 24
    answer, _, ended = ask(loaded, stop=[whole[-1] + "and more", "never said"])
    assert answer == whole  # what might have been a stop text is not lost
    assert ended["reason"] == "length"


def test_the_length_is_kept(loaded):
    whole = ask(loaded)[0]
    for count in (1, 5):
        answer, _, ended = ask(loaded, max_tokens=count)
        assert (ended["tokens"], ended["reason"]) == (count, "length")
        assert whole.startswith(answer)


def test_the_context_ends_an_answer(loaded):
    answers = (ask(loaded, max_tokens=10_000, temperature=1, seed=seed) for seed in range(30))
    _, started, ended = next(found for found in answers if found[2]["reason"] != "end")
    assert ended["reason"] == "context"
    assert started["prompt_tokens"] + ended["tokens"] == CONTEXT


def talk(turns, system=True):
    first = [{"role": "system", "content": "Be brief."}] if system else []
    for turn in range(turns):
        first.append({"role": "user", "content": f"Question {turn}: the lazy dog?"})
        first.append({"role": "assistant", "content": f"Answer {turn}: quick fox."})
    return [*first, {"role": "user", "content": "And now?"}]


def test_the_oldest_turns_are_dropped_and_the_rest_stays_cached(worker, base):
    load(worker, base)
    dropped = []
    for turns in range(1, 16):
        messages = talk(turns)
        _, started, ended = ask(worker, messages, max_tokens=8)
        dropped.append(started["dropped_messages"])
        assert started["prompt_tokens"] + 8 <= CONTEXT
        assert ended["reason"] in {"length", "end"}
        kept = [messages[0], *messages[1 + dropped[-1] :]]
        seen = worker.ask("render", messages=kept)[-1]["tokens"]
        assert started["prompt_tokens"] == len(seen)
        if turns > 1 and dropped[-1] == dropped[-2]:
            assert started["cached_tokens"] > started["prompt_tokens"] / 3
    assert dropped[0] == 0
    assert dropped[-1] > 0
    assert dropped == sorted(dropped)
    assert all(count % 2 == 0 for count in dropped)  # a question with its answer
    assert len(set(dropped)) < 6  # not every turn
    assert ask(worker, talk(20, system=False), max_tokens=8)[1]["dropped_messages"] > 0
    assert ask(worker, talk(1))[1]["dropped_messages"] == 0


def test_a_message_that_is_too_long_is_counted(loaded):
    long = [*talk(3), {"role": "user", "content": "the lazy dog " * 200}]
    message = failed(loaded.ask("chat", messages=long), hint="shorten it")
    count, fits = (int(word) for word in message.split() if word.isdecimal())
    assert (count > 300, fits) == (True, CONTEXT - 1)
    assert ask(loaded)[0]


def test_a_smaller_context_can_be_had(worker, base):
    assert load(worker, base, context=100)["context"] == 100
    answers = (ask(worker, max_tokens=10_000, temperature=1, seed=seed) for seed in range(30))
    _, started, ended = next(found for found in answers if found[2]["reason"] != "end")
    assert (ended["reason"], started["prompt_tokens"] + ended["tokens"]) == ("context", 100)
    assert load(worker, base, context=1_000_000)["context"] == 256  # the model has no more


def wait_for(worker, name, event):
    while True:
        found = worker.next()
        if found["id"] == name and found["event"] == event:
            return found


@pytest.fixture(scope="module")
def slow(program, tmp_path_factory):
    """A worker whose model takes a while for a long prompt, and its file."""
    folder = tmp_path_factory.mktemp("slow")
    make_model(folder / "m", hidden=384, intermediate=1024, layers=6, max_position_embeddings=8192)
    place = folder / "long.gguf"
    write_gguf(place, open_checkpoint(str(folder / "m")))
    with running([program]) as worker:
        worker.next()
        event = worker.ask("load", model=str(place), context=8192, threads=1)[-1]
        assert (event["event"], event["context"]) == ("loaded", 8192)
        yield worker
        worker.post("chat", messages=HELLO, max_tokens=10**6, temperature=2)
        assert worker.close() == 0  # which cancels


def test_an_answer_and_what_waits_can_be_cancelled(slow):
    name = slow.post("chat", messages=HELLO, max_tokens=10**6, temperature=1, seed=2)
    wait_for(slow, name, "text")
    queued = slow.post("chat", messages=HELLO, max_tokens=10**6)
    begun = time.monotonic()
    asked = [slow.post("cancel", request=which) for which in (queued, name, "nobody")]
    seen = [slow.next()]
    while seen[-1]["id"] != queued or seen[-1]["event"] != "ended":
        seen.append(slow.next())
    assert time.monotonic() - begun < 2
    ends = {event["id"]: event for event in seen if event["event"] in {"ended", "done"}}
    assert [ends[one]["event"] for one in asked] == ["done"] * 3
    assert (ends[name]["reason"], ends[name]["tokens"] > 0) == ("cancelled", True)
    assert (ends[queued]["reason"], ends[queued]["tokens"]) == ("cancelled", 0)
    assert ask(slow)[2]["tokens"] > 0


def test_a_long_prompt_can_be_cancelled(slow):
    messages = [{"role": "user", "content": "the lazy dog " * 1500}]
    name = slow.post("chat", messages=messages, max_tokens=4)
    started = wait_for(slow, name, "started")
    assert started["prompt_tokens"] > 3000
    begun = time.monotonic()
    slow.post("cancel", request=name)
    ended = wait_for(slow, name, "ended")
    assert time.monotonic() - begun < 2
    assert (ended["reason"], ended["tokens"]) == ("cancelled", 0)
    assert ask(slow)[2]["tokens"] > 0


def test_replay_is_chats_that_the_model_writes(loaded, tmp_path):
    texts = {}
    for place, seed in (("a", 1), ("b", 1), ("c", 2)):
        events = loaded.ask("write", count=9, tokens=33, seed=seed, out=str(tmp_path / place))
        assert events[-1] == events[-1] | {"event": "written", "count": 9, "tokens": 9 * 33}
        shares = [event["share"] for event in events[:-1]]
        assert shares == sorted(shares)
        written = json.loads((tmp_path / place).read_text())
        assert written["version"] == 1
        texts[place] = written["texts"]
    assert texts["a"] == texts["b"] != texts["c"]
    assert [len(text) for text in texts["a"]] == [33] * 9
    assert len({tuple(text) for text in texts["a"]}) == 9
    rendered = loaded.ask("render", messages=[{"role": "user", "content": ""}])[-1]
    opening = rendered["tokens"][:3]
    assert opening[0] == 1  # <|im_start|>
    assert all(text[:3] == opening for text in texts["a"])
    assert {"a", "b", "c"} == {place.name for place in tmp_path.iterdir()}


def test_replay_of_a_model_without_a_template_is_documents(worker, base, tmp_path):
    place = tmp_path / "plain.gguf"
    rewritten(base.file, place, {"tokenizer.chat_template": None})
    assert worker.ask("load", model=str(place))[-1]["chat_template"] is False
    worker.ask("write", count=3, tokens=9, out=str(tmp_path / "texts"))
    texts = json.loads((tmp_path / "texts").read_text())["texts"]
    assert [len(text) for text in texts] == [9] * 3
    assert len({text[0] for text in texts}) == 3


def test_replay_can_be_cancelled(loaded, tmp_path):
    out = tmp_path / "texts"
    name = loaded.post("write", count=4096, tokens=129, out=str(out))
    wait_for(loaded, name, "progress")
    assert loaded.ask("cancel", request=name)[-1]["event"] == "done"
    last = next(e for e in iter(loaded.next, None) if e["event"] in {"written", "failed"})
    assert last["event"] == "failed" or last["count"] == len(json.loads(out.read_text())["texts"])
    message = failed(loaded.ask("write", out=str(tmp_path / "no" / "folder"), count=1, tokens=2))
    assert message == "the texts cannot be written"


def test_the_end_of_the_input_ends_the_worker(program, base):
    with running([program]) as worker:
        worker.next()
        worker.ask("load", model=str(base.file), threads=1)
        for _ in range(3):
            worker.post("chat", messages=HELLO, max_tokens=10**6, temperature=2)
        assert worker.close() == 0
