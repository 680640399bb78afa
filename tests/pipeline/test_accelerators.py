"""Whole builds on a device that is not the CPU (`tests/support/pretend.py`), beside the same on it.

Where a machine has CUDA or MPS, the same builds run there too. Codes may differ where two are
equally near, so what is compared is how far the results are from the original.
"""

from contextlib import nullcontext

import pytest
import torch

from edgepack import pipeline
from edgepack.core import accelerator
from edgepack.core.accelerator import CPU
from edgepack.core.artifact import Artifact
from edgepack.core.progress import finish
from edgepack.recipe.read import load
from tests.support.pretend import CALLS, NAME, PRETEND, narrow
from tests.support.recipes import write_recipe, write_texts
from tests.support.tiny import make_model

pytestmark = pytest.mark.pretend

NEAR = 0.5
"""Relative difference of KL and errors. One label in 256 that is drawn differently is 2 % of H, and
H of so few tokens overfits; for real models docs/accelerators.md states a tolerance."""
SHORT = {"tokens": 256, "sequence_length": 32}
FACTORS = {"format": "q4_0", "rank": 4, "factors": "q8_0", "iterations": 1, "damping": [0.1]}
RECIPES = {
    "model": {
        "calibrate": SHORT,
        "compress": FACTORS,
        "recover": {"steps": 2, "evaluate_every": 2, "tokens": 64},
    },
    "slice": {
        "slice": {
            "sparsity": 0.25,
            "round_to": 32,
            "allow_growth": True,
            "recover": {"steps": 2, "rank": 4, "tokens": 64},
        },
        "calibrate": {**SHORT, "objective": "guided"},
        "compress": FACTORS,
        "export": {"merge_factors": True, "measure": {"tokens": 0}},
    },
    "layer": {"calibrate": {**SHORT, "objective": "layer"}, "compress": FACTORS},
    "compensate": {
        "calibrate": SHORT,
        "compress": FACTORS | {"compensate": {"steps": 2, "tokens": 64}},
    },
    "budget": {
        "calibrate": SHORT,
        "compress": {"bits_per_weight": 5, "iterations": 1, "candidates": ["q4_0", "q8_0"]},
    },
}
PRETENDED = [("model", "wide"), ("slice", "narrow"), ("layer", "narrow"), ("budget", "wide")]
PRETENDED += [("compensate", "narrow")]
REAL = [(name, kind) for name in RECIPES for kind in accelerator.COUNTS]


def on(kind: str):
    """The device of a kind, for a `with`."""
    if kind in accelerator.COUNTS:
        if not accelerator.COUNTS[kind]():
            pytest.skip(f"torch finds no {kind} on this machine")
        return nullcontext(torch.device(kind))
    return narrow() if kind == "narrow" else nullcontext(PRETEND)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model(folder / "model", hidden=64, intermediate=96)
    write_texts(folder, rows=12)
    return folder


def build(place, name: str, device: torch.device) -> Artifact:
    recipe = load(write_recipe(place, **RECIPES[name]))
    out = place / f"{name} on {device}"
    return finish(pipeline.build(recipe, "gguf", base=place, out=out, force=True, device=device))


@pytest.fixture(scope="module")
def on_cpu(place):
    found = {}

    def get(name: str) -> Artifact:
        if name not in found:
            found[name] = build(place, name, CPU)
        return found[name]

    return get


@pytest.mark.parametrize(("name", "kind"), PRETENDED + REAL)
def test_a_build_is_as_good_as_on_the_cpu(place, on_cpu, name, kind):
    with on(kind) as device:
        wanted = on_cpu(name).manifest
        CALLS.clear()
        found = build(place, name, device).manifest
        assert device.type != NAME or CALLS["mm"]
        assert found["device"] == accelerator.describe(device)
    for part in ("recovered", "rft"):
        if wanted[part]:
            assert found[part]["device"] == device.type
            assert found[part]["start"] == pytest.approx(wanted[part]["start"], rel=NEAR)
            assert found[part]["best"] == pytest.approx(wanted[part]["best"], rel=NEAR)
    errors = [[w["error"] for w in m["weights"].values()] for m in (found, wanted)]
    assert sum(errors[0]) == pytest.approx(sum(errors[1]), rel=NEAR)
    assert found["stages"]["check"] == wanted["stages"]["check"]
    assert found["stages"]["decompose"] != wanted["stages"]["decompose"]
