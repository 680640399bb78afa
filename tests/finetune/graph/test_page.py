"""The page train.html trains as Python does, in a headless browser with onnxruntime-web's wasm."""

import os
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgepack.core.progress import finish
from edgepack.recover.adam import schedule
from tests.support.training import packed, rows

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime")
from edgepack.finetune.graph.folder import export_training
from edgepack.finetune.graph.options import Options
from edgepack.finetune.graph.runner import TrainingSession, read_factors, split

sys.path.insert(0, str(Path(__file__).parents[2] / "others"))
STEPS, RATE = 8, 5e-3


@pytest.fixture
def browser():
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("Chromium is not installed")
    return found


@pytest.fixture
def modules():
    found = os.environ.get("EDGEPACK_NODE")
    if not found:
        pytest.skip("EDGEPACK_NODE is not set; name a folder where npm installed onnxruntime-web")
    return found


def in_python(folder):
    session = TrainingSession(folder, threads=1)
    state, texts = session.first_state(), rows()
    for step in range(STEPS):
        rate = RATE * schedule(step, STEPS)
        session.step(state, [texts[step % len(texts)]], rate)
    return state.losses, split(session.about.matrices(), state.theta)


@pytest.mark.parametrize(
    ("family", "form", "mode"),
    [("qwen2", "q4_0", "factors"), ("opt", "int4_g32", "stack"), ("phi", "int8", "factors")],
)
def test_the_page_trains_and_goes_on(family, form, mode, browser, modules, tmp_path):
    from training_page import trained

    packed(tmp_path, family, form=form)
    folder = finish(export_training(tmp_path / "out", tmp_path / "t", Options(mode, length=16)))
    losses, pairs = in_python(folder)
    profile = tmp_path / "profile"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = (browser, modules, folder, rows(), profile, port)
    found, written = trained(*given, steps=STEPS, rate=RATE, every=3, until=6)
    assert "error" not in found
    assert np.allclose(found["losses"], losses[:6], rtol=1e-4)
    found, written = trained(*given, steps=STEPS, rate=RATE, every=3)
    assert found["resumed"] == 6
    assert np.allclose(found["losses"], losses, rtol=1e-4)
    (tmp_path / "factors.safetensors").write_bytes(written)
    for name, (A, B) in read_factors(tmp_path / "factors.safetensors").items():
        assert torch.allclose(A, pairs[name][0], atol=2e-3)
        assert torch.allclose(B, pairs[name][1], atol=2e-3)
        assert torch.equal(A, A.half().float())


def test_the_page_says_what_is_wrong(browser, modules, tmp_path):
    from training_page import trained

    packed(tmp_path)
    folder = finish(export_training(tmp_path / "out", tmp_path / "t", Options(length=8)))
    found, written = trained(browser, modules, folder, rows(), steps=2, rate=RATE)
    assert "row 1: ids and labels must be as many, at most 8" in found["error"]
    assert written is None
