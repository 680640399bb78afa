"""`edgepack bench` on real workers: the file it writes, its tables, its refusals."""

from __future__ import annotations

import json

import pytest

from edgepack.bench import bench
from edgepack.bench.compare import compare, table
from edgepack.bench.llama_bench import beside, read_llama_bench
from edgepack.bench.protocol import Case
from edgepack.bench.quiet import remarks
from edgepack.bench.results import Bench, Quiet, read
from edgepack.bench.roofline import limit
from edgepack.bench.run import short_names
from edgepack.bench.tables import memory, page, speeds, terminal
from edgepack.errors import EdgepackError
from edgepack.runtimes.models import Model
from tests.support.bases import packed_base
from tests.support.commands import fails, run

pytest.importorskip("llama_cpp")
pytestmark = [pytest.mark.llama, pytest.mark.slow]
QUICK = ["--prompt", "8", "--decode", "4", "--rounds", "3", "--threads", "1", "--no-limits"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return packed_base(tmp_path_factory.mktemp("gguf"))[0]


@pytest.fixture(scope="module")
def found(base) -> Bench:
    models = [Model("ours", base.file, base.factors), Model("bare", base.file)]
    return bench(models, threads=[1], prompts=[8], decode=4, depths=[0, 16], rounds=3)


def test_every_model_case_and_number_of_threads_has_a_time_of_every_round(found):
    assert [model.name for model in found.models] == ["ours", "bare"]
    for model in found.models:
        keys = [(t.case.kind, t.case.depth) for t in model.timings]
        assert keys == [(kind, depth) for depth in (0, 16) for kind in ("prompt", "decode")]
        assert all(len(timing.seconds) == 3 for timing in model.timings)
        assert all(len(loading.peak) == 3 for loading in model.loading)
    assert [one.threads for one in found.ceilings.memory] == [1]
    assert {one.type for one in found.ceilings.products} == {"f16", "f32", "q4_0", "q8_0"}


def test_threads_are_swept_and_batches_run_together(base):
    found = bench(
        [base.file], threads=[2, 1], prompts=[4], decode=2, batches=[2, 1], rounds=1, limits=False
    )
    keys = [(t.threads, t.case.kind, t.case.batch) for t in found.models[0].timings]
    assert keys == [
        (threads, kind, batch)
        for threads in (2, 1)
        for batch in (1, 2)
        for kind in ("prompt", "decode")
    ]
    header, *rows = speeds(found)
    assert header == ["model", "threads", "case", "tokens/s", "±"]
    assert len(rows) == 8
    assert "limit" not in "\n".join(terminal(found))


def test_it_comes_back_from_its_file_as_it_was(found, tmp_path):
    (tmp_path / "bench.json").write_text(found.model_dump_json())
    assert read(tmp_path) == found
    assert read(tmp_path / "bench.json") == found


def test_limits_follow_from_bytes_and_bandwidth(found):
    model = found.models[0]
    for timing in model.timings:
        one = limit(timing, model.work, found.ceilings)
        if timing.case.kind == "decode":
            seconds = model.work.bytes_read(timing.case) / found.ceilings.bandwidth(timing.threads)
            assert one.tokens_per_second == pytest.approx(1 / seconds)
        assert one.share == pytest.approx(timing.tokens_per_second / one.tokens_per_second)


def test_tables_have_models_side_by_side_and_ratios_to_the_first(found):
    header, *rows = speeds(found)
    assert header == ["model", "case", "tokens/s", "±", "of limit", "ratio"]
    assert [row[0] for row in rows] == ["ours", "bare"] * 4
    assert {row[1] for row in rows} == {
        "prompt 8",
        "decode 4",
        "prompt 8 at 16",
        "decode 4 at 16",
    }
    assert all(row[-1] == "–" for row in rows[::2])
    assert all("[" in row[-1] for row in rows[1::2])
    assert [row[0] for row in memory(found)] == ["model", "ours", "bare"]
    assert "| bare" in page(found)


def test_the_command_writes_a_folder_that_can_be_read_again(base, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    result = run("bench", base.file, *QUICK, "--depth", "0,8", "--out", "b", "--json")
    told = json.loads(result.stdout)
    assert told == json.loads((tmp_path / "b" / "bench.json").read_text())
    names = {path.name for path in (tmp_path / "b").iterdir()}
    pictures = {
        f"{name}{dark}.{kind}"
        for name in ("speed", "memory", "roofline")
        for dark in ("", "-dark")
        for kind in ("png", "svg")
    }
    assert names == pictures | {"bench.json", "bench.md"}
    again = run("bench", "--compare", "b", "b/bench.json").stdout.splitlines()
    assert len(again) >= 5
    assert "1.000" in again[1]
    assert "no clear change" in again[1]


def test_this_machine_keeps_nothing_that_could_be_cleared():
    assert run("bench", "--clear").stdout == "local: 0 B removed\n"


def test_a_folder_of_somebody_else_s_is_refused_before_the_work(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "bench.json").write_text('{"mine": 1}')
    error, hint, _ = fails("bench", base.file, *QUICK, "--out", "b")
    assert "holds a bench.json or bench.md that edgepack bench did not write" in error
    assert hint == "hint: --out DIR writes elsewhere"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "names no model"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["{file}", "--prompt", "x"], "--prompt: 'x'"),
        (["{file}", "--batch", "0"], "--batch: '0'"),
        (["{file}", "--factors", "some"], "--factors: 'some'"),
        (["{file}", "--factors", "both"], "has none beside it that could be left out"),
        (["{file}", "--device", "toaster"], "no 'toaster'"),
        (["--compare", "a.json"], "--compare: takes two files"),
        (["--compare", "a.json", "b.json"], "a.json: no such file"),
        (["{file}", "--against", "theirs.json"], "--against: theirs.json: no such file"),
    ],
)
def test_what_cannot_be_measured_is_one_line(base, tmp_path, monkeypatch, arguments, reason):
    monkeypatch.chdir(tmp_path)
    error, _, _ = fails("bench", *(one.format(file=base.file) for one in arguments))
    assert reason in error


def test_another_file_of_that_name_is_no_benchmark(tmp_path):
    (tmp_path / "bench.json").write_text("[1]")
    with pytest.raises(EdgepackError, match=r"bench\.json"):
        read(tmp_path)


def timed(found: Bench, *seconds: float) -> Bench:
    """The same run, had every case taken this long in its rounds."""
    told = json.loads(found.model_dump_json())
    for model in told["models"]:
        for timing in model["timings"]:
            timing["seconds"] = list(seconds)
    return Bench.model_validate(told)


def test_a_slower_run_is_called_slower_if_that_is_more_than_chance(found):
    before = timed(found, 1.0, 1.02, 0.98)
    for after, verdict in (
        ((1.3, 1.28, 1.32), "slower"),
        ((0.7, 0.72, 0.71), "faster"),
        ((1.01, 1.03, 0.98), "no clear change"),
        ((0.9, 1.3, 1.7), "no clear change"),
    ):
        changes, _ = compare(before, timed(found, *after))
        assert {row[-1] for row in table(changes)[1:]} == {verdict}
    changes, notes = compare(before, before)
    assert {one.ratio for one in changes} == {1}
    assert not [note for note in notes if note.startswith("another")]


def test_another_machine_is_named(found):
    told = json.loads(found.model_dump_json())
    told["device"]["machine"] = "toaster"
    _, notes = compare(found, Bench.model_validate(told))
    assert [note for note in notes if note.startswith("another machine:")]


def test_llama_bench_s_own_file_is_set_beside(found, tmp_path):
    timing = next(t for t in found.models[1].timings if t.case == Case(kind="decode", tokens=4))
    theirs = {
        "model_filename": f"/elsewhere/{found.models[1].file}",
        "n_prompt": 0,
        "n_gen": 4,
        "n_depth": 0,
        "n_threads": 1,
        "samples_ns": [round(2e9 * s) for s in timing.seconds],
        "some_new_key": None,
    }
    (tmp_path / "theirs.json").write_text(json.dumps([theirs]))
    lines = beside(found, read_llama_bench(tmp_path / "theirs.json"))
    assert len(lines) == 3  # ours with factors is set beside it, too
    assert "2.000" in lines[2]
    (tmp_path / "theirs.json").write_text(json.dumps([theirs | {"samples_ns": []}]))
    with pytest.raises(EdgepackError, match=r"--against: .*samples_ns"):
        read_llama_bench(tmp_path / "theirs.json")


def test_what_a_reader_has_to_know_is_said(found):
    noisy = Quiet(others=0.4, stolen=0.2, before={"saver": True})
    told = " ".join(remarks(found.models, noisy, {"emulated": True}))
    assert "others took 40%" in told
    assert "denied 20%" in told
    assert "saves power" in told
    assert "no speeds of a device" in told
    told = " ".join(remarks(timed(found, 1.0, 1.2, 1.4).models, Quiet(), {}))
    assert "speed fell by 29%" in told
    assert "vary by more than" in told


def test_the_device_s_state_before_and_after_is_shown(found):
    told = json.loads(found.model_dump_json())
    told["quiet"]["before"] = {"load": 0.2, "battery": 80, "celsius": 31.0}
    told["quiet"]["after"] = {"load": 1.9, "battery": 79}
    line = "before → after: load 0.2 → 1.9, battery 80 % → 79 %"
    assert f"- {line}" in terminal(Bench.model_validate(told))
    assert line in page(Bench.model_validate(told))
    told["quiet"]["after"] = {}
    assert "before → after" not in page(Bench.model_validate(told))


def test_names_are_short_where_that_tells_models_apart():
    assert short_names(["a/x.gguf", "b/y"]) == ["x.gguf", "y"]
    assert short_names(["a/x", "b/x"]) == ["a/x", "b/x"]
    assert short_names(["a/x", "a/x"]) == ["x", "x (2)"]
