"""The app's host on this machine, with the real programs, as the page sees it."""

from __future__ import annotations

import json
import os
import shutil
import signal

import psutil
import pytest

from edgepack.bench import results
from edgepack.bench.work import work_of
from edgepack.runtimes.models import Model
from tests.android.host import running

pytestmark = pytest.mark.llama


def load(host, base):
    imported = host.import_files(base.folder / "base.gguf", base.folder / "factors.gguf")
    assert imported["event"] == "imported", imported
    model = imported["model"]["id"]
    loaded = host.ask("chat", "load", model=model, adapters=[], context=64, threads=1)
    assert loaded["event"] == "loaded", loaded
    return model


def chat(host, **fields):
    return host.ask(
        "chat",
        "chat",
        messages=[{"role": "user", "content": "w1 w2"}],
        scales={},
        max_tokens=4,
        temperature=0,
        **fields,
    )


def children(host, name):
    found = psutil.Process(host.process.pid).children(recursive=True)
    return [one for one in found if f"libedgepack-{name}" in " ".join(one.cmdline())]


def test_hello_says_what_the_app_can(host):
    hello = host.ask("app", "hello")
    assert hello["host"] == "android"
    assert hello["can"] == {
        "tune": "this app was built without the program tune",
        "bench": True,
        "import": True,
        "share": True,
    }
    assert hello["device"]["cores"] == os.cpu_count()
    assert host.ask("app", "models")["models"] == []


def test_a_model_is_imported_once_loaded_and_chats(host, base, tmp_path):
    model = load(host, base)
    again = host.import_files(base.folder / "base.gguf", base.folder / "factors.gguf")
    (only,) = host.ask("app", "models")["models"]
    assert again["model"]["id"] == model == only["id"]
    assert only["sha256"] == base.files["base.gguf"]
    assert only["factors"]
    assert only["problem"] is None
    ended = chat(host)
    assert ended["event"] == "ended"
    assert ended["tokens"] <= 4
    assert not list((tmp_path / "files/models/.incoming").glob("*"))


def test_no_path_reaches_the_page(host, base, tmp_path):
    model = load(host, base)
    chat(host)
    host.ask("app", "models")
    host.ask("chat", "load", model="0" * 16, adapters=[])
    shutil.rmtree(tmp_path / "files/models" / model / "base.gguf", ignore_errors=True)
    (tmp_path / "files/models" / model / "base.gguf").unlink()
    failed = host.ask("chat", "load", model=model, adapters=[])
    assert failed["event"] == "failed"
    assert str(tmp_path) not in json.dumps([host.told, failed])


def test_what_a_page_may_not_ask(host):
    for to, do in (("chat", "inspect"), ("chat", "write"), ("tune", "gradient"), ("nobody", "x")):
        assert host.ask(to, do, file="/etc/passwd")["event"] == "failed"
    for model in ("../../etc", "", "0" * 16, "A" * 16):
        assert "not on the phone" in host.ask("chat", "load", model=model)["message"]
    host.act("post", "{")
    assert host.next(None)["message"].startswith("JSON: ")
    host.act("post", json.dumps({"id": "app:1", "to": "app", "do": "models"}))
    assert host.next(None)["event"] == "failed"


# ---------------------------------------------------------------------------- imports


def test_a_manifest_is_compared(host, base, tmp_path):
    base_file, factors = base.folder / "base.gguf", base.folder / "factors.gguf"
    manifest = base.folder / "manifest.json"
    assert host.import_files(base_file, factors, manifest)["event"] == "imported"
    other = tmp_path / "manifest.json"
    other.write_text(manifest.read_text().replace(base.files["factors.gguf"], "0" * 64))
    failed = host.import_files(base_file, factors, other)
    assert failed["message"] == "factors.gguf has other bytes than the manifest says"


def test_a_base_whose_factors_are_missing_gets_them_later(host, base):
    alone = host.import_files(base.folder / "base.gguf", base.folder / "manifest.json")
    assert "factors.gguf is missing" in alone["model"]["problem"]
    whole = host.import_files(base.folder / "factors.gguf")["model"]
    assert whole["id"] == alone["model"]["id"]
    assert whole["factors"]
    assert whole["problem"] is None


def test_factors_of_no_model_are_refused(host, base):
    failed = host.import_files(base.folder / "factors.gguf")
    assert failed["message"] == "factors.gguf alone is no model"


@pytest.mark.parametrize("size", [0, 3, 100, 4000, -1])
def test_a_cut_file_is_refused_and_leaves_nothing(host, base, tmp_path, size):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((base.folder / "base.gguf").read_bytes()[:size])
    failed = host.import_files(cut)
    assert failed["event"] == "failed"
    assert failed["message"].startswith("cut.gguf")
    assert host.ask("app", "models")["models"] == []
    left = [path for path in (tmp_path / "files/models").rglob("*") if path.is_file()]
    assert left == []


def test_a_film_is_not_copied(host, tmp_path):
    film = tmp_path / "film.mp4"
    film.write_bytes(bytes(1 << 20))
    failed = host.import_files(film)
    assert failed["message"] == "film.mp4 is no GGUF file"
    assert not children(host, "chat")


def test_a_full_phone_is_told_before_the_copy(host, base):
    host.act("free", 1 << 20)
    failed = host.import_files(base.folder / "base.gguf")
    assert failed["message"].startswith("the phone has 1 MB free, this needs 64 MB")


def test_no_choice_is_no_failure(host):
    host.act("choose", None)
    assert host.ask("app", "import", kind="model")["event"] == "cancelled"


def test_a_file_that_another_app_gives_is_offered_then_imported(host, base):
    host.act("offer", [str(base.folder / "base.gguf")])
    assert host.until(None, "offered")[-1]["names"] == ["base.gguf"]
    host.ask("app", "hello")  # a page that comes later hears of it, too
    assert host.until(None, "offered")[-1]["names"] == ["base.gguf"]
    assert host.ask("app", "import", kind="model", offered=True)["event"] == "imported"
    assert len(host.ask("app", "models")["models"]) == 1
    assert "no longer" in host.ask("app", "import", kind="model", offered=True)["message"]


# ---------------------------------------------------------------------------- adapters


@pytest.fixture
def adapter(base, tmp_path):
    """The factors once more, as what was learnt on this base."""
    import gguf

    reader = gguf.GGUFReader(base.folder / "factors.gguf")
    path = tmp_path / "notes.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key in ("general.type", "adapter.type"):
        writer.add_string(key, reader.fields[key].contents())
    writer.add_float32("adapter.lora.alpha", 0.0)
    writer.add_string("edgepack.base.digest", base.identity.digest)
    writer.add_string("edgepack.base.name", "tiny")
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_adapter_is_imported_switched_shared_and_removed(host, base, adapter, tmp_path):
    model = load(host, base)
    imported = host.import_files(adapter, kind="adapter", model=model)
    (known,) = imported["model"]["adapters"]
    assert (known["name"], known["problem"]) == ("notes", None)
    plain = chat(host)
    assert host.ask("chat", "adapters", model=model, adapters=["notes"])["names"] == ["notes"]
    host.post("chat", "chat", messages=[{"role": "user", "content": "w1"}], scales={"notes": 1})
    assert plain["event"] == "ended"
    assert host.ask("app", "share", model=model, adapter="notes")["event"] == "cancelled"
    host.act("target", str(tmp_path / "copy.gguf"))
    assert host.ask("app", "share", model=model, adapter="notes")["event"] == "shared"
    assert (tmp_path / "copy.gguf").read_bytes() == adapter.read_bytes()
    assert {"told": "save", "value": "notes.gguf"} in host.told
    assert host.ask("app", "remove", model=model, adapter="notes")["event"] == "removed"
    assert host.ask("app", "models")["models"][0]["adapters"] == []


def test_an_adapter_is_not_taken_for_factors(host, base, adapter):
    failed = host.import_files(base.folder / "base.gguf", adapter)
    assert failed["message"] == "notes.gguf is learnt notes, not the model's factors"
    assert host.ask("app", "models")["models"] == []


def test_an_adapter_finds_its_model_by_itself(host, base, adapter):
    failed = host.import_files(adapter)
    assert failed["message"].endswith("of a model that is not here")
    model = load(host, base)
    assert host.import_files(adapter)["model"]["id"] == model


def test_an_adapter_of_another_base_is_refused(host, base, adapter):
    alone = host.import_files(base.folder / "base.gguf")["model"]["id"]
    failed = host.import_files(adapter, kind="adapter", model=alone)
    assert failed["message"] == "notes.gguf was made for another model"


# ---------------------------------------------------------------------------- workers


def test_a_killed_worker_fails_what_is_open_and_starts_anew(host, base):
    load(host, base)
    (worker,) = children(host, "chat")
    worker.suspend()
    name = host.post("chat", "chat", messages=[{"role": "user", "content": "w"}], scales={})
    assert host.ask("app", "models")["event"] == "models"  # the host does not wait
    worker.send_signal(signal.SIGKILL)
    failed = host.until(name, "failed", "ended")[-1]
    assert failed["ended"]
    assert failed["from"] == "chat"
    assert failed["message"] == "the program chat ended by itself"
    assert chat(host)["message"].startswith("no model is loaded")
    assert load(host, base)


def test_models_outlive_the_app(classes, host, base, tmp_path):
    model = load(host, base)
    host.process.kill()
    host.process.wait()
    folder = tmp_path / "files/models"
    (folder / ".incoming/1").mkdir(parents=True)
    (folder / "half").mkdir()
    with running(classes, tmp_path / "programs", tmp_path / "files", tmp_path / "x") as found:
        (only,) = found.ask("app", "models")["models"]
        assert only["id"] == model
        assert sorted(path.name for path in folder.iterdir()) == [model]
        assert found.ask("app", "remove", model=model, adapter=None)["event"] == "removed"
        assert list(folder.iterdir()) == []


def test_the_app_leaves_no_process(host, base):
    load(host, base)
    workers = children(host, "chat")
    assert workers
    host.process.stdin.close()
    assert host.process.wait(20) == 0
    assert not psutil.wait_procs(workers, timeout=10)[1]


def test_a_processor_that_is_too_old_is_told(classes, tmp_path):
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("chat", "tune", "bench"):
        (folder / f"libedgepack-{name}-dotprod.so").touch()
    (folder / "libedgepack-chat.so").touch()
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd fphp asimdhp\n")
    with running(classes, folder, tmp_path / "files", cpuinfo) as found:
        can = found.ask("app", "hello")["can"]
    assert can["import"] is True
    assert "processor is too old" in can["tune"]


# ---------------------------------------------------------------------------- benchmark


def test_a_benchmark_is_what_edgepack_bench_reads(host, base, tmp_path):
    model = load(host, base)
    name = host.post(
        "bench", "bench", model=model, adapters=[], prompt=8, decode=4, rounds=2, threads=1
    )
    events = host.until(name, "benched", "failed", timeout=300)
    assert [(e["round"], e["kind"]) for e in events[:-1]] == [
        (0, "prompt"),
        (0, "decode"),
        (1, "prompt"),
        (1, "decode"),
    ]
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(events[-1]["bench"]))
    found = results.read(path)
    (only,) = found.models
    assert only.work == work_of(Model("tiny", base.file, base.factors))
    assert [len(timing.seconds) for timing in only.timings] == [2, 2]
    assert found.ceilings.bandwidth(1) > 1e6
    assert found.ceilings.product("q4_0", 1, many=True).flops > 1e6


def test_a_benchmark_can_be_stopped(host, base):
    model = load(host, base)
    name = host.post(
        "bench", "bench", model=model, adapters=[], prompt=64, decode=64, rounds=50, threads=1
    )
    host.until(name, "case")
    host.ask("bench", "cancel", request=name)
    assert host.until(name, "failed", "benched")[-1]["message"] == "the benchmark was stopped"
    assert not children(host, "bench")
