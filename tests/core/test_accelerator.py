"""Which device a name stands for, and what a key has of it."""

from collections.abc import Callable

import pytest
import torch

import edgepack
from edgepack.core import accelerator
from edgepack.core.accelerator import CPU, back, choose, described, keyed, precise, wide
from edgepack.core.os_errors import from_os_error
from edgepack.errors import RecipeError
from edgepack.pipeline import make_plan
from edgepack.recipe.read import load
from tests.support.commands import fails, run
from tests.support.pretend import PRETEND, narrow
from tests.support.recipes import write_recipe, write_texts
from tests.support.tiny import make_model

pytestmark = pytest.mark.pretend

HERE = [kind for kind, count in accelerator.COUNTS.items() if count()]
AWAY = [kind for kind in accelerator.COUNTS if kind not in HERE]
COMPUTED = ("text", "slice", "rft", "calibrate", "decompose", "recover", "measure")


def test_names_that_are_always_known():
    assert choose("cpu") == CPU
    assert choose("auto") == torch.device(HERE[0] if HERE else "cpu")


@pytest.mark.parametrize(
    "name", ["", "gpu", "cuda:", "cuda:x", "cuda:0:1", "cpu:0", "CUDA", "meta"]
)
def test_what_is_no_device(name):
    with pytest.raises(RecipeError, match="no device to compute on") as error:
        choose(name)
    assert "cuda:1" in error.value.hint


@pytest.mark.parametrize("kind", AWAY)
def test_a_device_that_torch_does_not_find(kind):
    with pytest.raises(RecipeError, match=f"finds no {kind} here") as error:
        choose(kind)
    assert "cpu" in error.value.hint


@pytest.mark.parametrize("kind", HERE)
def test_one_that_it_finds(kind):
    assert choose(kind).type == kind
    with pytest.raises(RecipeError, match="finds no"):
        choose(f"{kind}:99")


def counted(monkeypatch, **counts: int) -> None:
    known: dict[str, Callable[[], int]] = {kind: lambda n=n: n for kind, n in counts.items()}
    monkeypatch.setattr(accelerator, "COUNTS", known)


def test_cuda_comes_before_mps(monkeypatch):
    counted(monkeypatch, cuda=2, mps=1)
    assert choose("auto") == torch.device("cuda")
    assert choose("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(RecipeError, match="cuda:2") as error:
        choose("cuda:2")
    assert "there are 2" in error.value.hint
    counted(monkeypatch, cuda=0, mps=1)
    assert choose("auto") == torch.device("mps")


def test_keys_have_the_kind_and_of_the_cpu_nothing():
    assert keyed(CPU) == {}
    assert keyed(torch.device("cuda", 1)) == keyed(torch.device("cuda")) == {"device": "cuda"}
    assert described("cuda (NVIDIA L4)") == torch.device("cuda")
    assert described("cpu") == described("abacus") == CPU


def test_float64_is_the_cpus_where_a_device_has_none():
    x = torch.arange(4.0)
    with narrow() as device:
        there = x.to(device)
        assert wide(there).device == CPU == precise(device)
        assert wide(there).dtype == torch.float64
        again = back(wide(there), there)
        assert (again.device, again.dtype) == (device, torch.float32)
    assert wide(x.to(PRETEND)).device == precise(PRETEND) == PRETEND


def test_a_full_device_is_a_line():
    found = from_os_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert "--device cpu" in found.hint


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    make_model(folder / "model", hidden=64, intermediate=96)
    write_texts(folder, rows=12)
    return folder


def recipe(place):
    return write_recipe(
        place,
        slice={"sparsity": 0.25, "round_to": 32, "allow_growth": True, "recover": {"steps": 2}},
        calibrate={"source": "self", "tokens": 512},
        compress={"format": "q4_0"},
        recover={"steps": 2},
    )


def test_the_device_is_in_the_key_of_every_stage_that_it_computes(place):
    plans = [make_plan(load(recipe(place)), "gguf", place, device=d) for d in (CPU, PRETEND)]
    here, there = ({s.label: s.options() for s in plan.stages} for plan in plans)
    assert {*COMPUTED, "check", "grids", "export"} >= {*here}
    for name, options in here.items():
        own = there[name].pop("device", None)
        assert own == (PRETEND.type if name in COMPUTED else None)
        for key in ("device", "dtype", "arithmetic", "text"):  # and the key of the text itself
            options.pop(key, None)
            there[name].pop(key, None)
        assert there[name] == options


def test_without_float64_decompose_is_the_cpus(place):
    with narrow() as device:
        plan = make_plan(load(recipe(place)), "gguf", place, device=device)
        options = {stage.label: stage.options() for stage in plan.stages}
    assert "device" in options["calibrate"]
    assert "device" not in options["decompose"]


@pytest.mark.parametrize("kind", AWAY[:1])
def test_commands_and_functions_refuse_it_while_planning(place, tmp_path, kind):
    path = recipe(place)
    for command in (
        ["build", str(path)],
        ["plan", str(path)],
        ["compare", str(path), "--sizes", "1MB", "--out", str(tmp_path / "c")],
        ["evaluate", str(place)],
        ["finetune", str(place), "--data", str(place / "rows.jsonl")],
    ):
        error, _, code = fails(*command, "--device", kind)
        assert error == f"error: --device: torch {torch.__version__} finds no {kind} here"
        assert code == RecipeError.exit_code
    with pytest.raises(RecipeError):
        edgepack.build(path, device=kind, out=tmp_path / "out")


def test_plan_says_where_it_would_compute(place, monkeypatch):
    path = recipe(place)
    assert HERE or "computes on" not in run("plan", path).stdout
    counted(monkeypatch, cuda=0, mps=1)
    assert "computes on the cpu; --device mps is there" in run("plan", path).stdout
    assert "computes on mps" in run("plan", path, "--device", "auto").stdout
