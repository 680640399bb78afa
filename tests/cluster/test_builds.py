"""Work on a real Ray cluster, of `ray start` nodes on this machine: one shares the driver's files,
the other takes nothing from them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

import edgepack
from tests.core.test_executor import write_recipe
from tests.support.tiny import make_model

pytestmark = pytest.mark.slow
PATIENCE = 300.0
"""Seconds until a test is given up, on a machine that is very busy."""
MEASURED = {
    "compress": {"bits_per_weight": 6, "damping": [0.1]},
    "export": {"measure": {"text": "text.txt", "tokens": 256, "context": 64}},
}


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A recipe, and what it becomes without a cluster."""
    folder = tmp_path_factory.mktemp("local")
    make_model(folder / "model", tied=True)
    write_recipe(folder, MEASURED, "model")
    given = json.loads((folder / "recipe.yaml").read_text()) | MEASURED
    (folder / "recipe.yaml").write_text(json.dumps(given))
    artifact = edgepack.build(folder / "recipe.yaml", out=folder / "out")
    return folder / "recipe.yaml", artifact


def files(artifact) -> dict[str, bytes]:
    """Those that a runtime gets."""
    return {path.name: path.read_bytes() for path in artifact.folder.glob("*.gguf")}


def test_a_build_is_the_same_when_a_node_is_killed_in_the_middle(
    tmp_path, monkeypatch, nodes, local, capfd
):
    def kill(progress):
        if progress.stage == "decompose" and progress.done and "near" in nodes.nodes:
            nodes.kill("near")

    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    recipe, here = local
    there = edgepack.build(recipe, out=tmp_path / "out", cluster=nodes.address, progress=kill)
    assert "near" not in nodes.nodes
    assert files(there) == files(here)
    assert there.manifest["measured"] == here.manifest["measured"]
    facts = there.manifest["cluster"]
    assert facts["models_sent"] > 0
    assert facts["items"] > facts["files_sent"] > 0, "the near node read the files itself"
    assert not list((nodes.folder / "cache-of-far" / "cluster").iterdir())
    printed = capfd.readouterr()
    assert "raylet" not in printed.out + printed.err
    assert "Work shared by 2 × " in (there.folder / "report.md").read_text()
    nodes.start("near")  # for the tests that follow
    nodes.wait()


def test_ctrl_c_leaves_what_goes_on_to_the_same_files(tmp_path, monkeypatch, nodes, local):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    recipe, here = local
    command = [sys.executable, "-m", "edgepack", "build", str(recipe)]
    command += ["--out", str(tmp_path / "out"), "--cluster", nodes.address]
    partial, end = tmp_path / "cache" / "decompose", time.monotonic() + PATIENCE
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as driver:
        try:
            while not list(partial.glob("*/*.safetensors")):
                assert driver.poll() is None
                assert time.monotonic() < end
                time.sleep(0.02)
            driver.send_signal(signal.SIGINT)
            said = driver.communicate()[1]
        finally:
            driver.kill()
    assert driver.returncode == 130, said
    assert "interrupted: run again to resume" in said
    assert "Traceback" not in said
    done = {p.name: p.stat().st_mtime_ns for p in partial.glob("*/*.safetensors")}
    there = edgepack.build(recipe, out=tmp_path / "out", cluster=nodes.address)
    again = {p.name: p.stat().st_mtime_ns for p in partial.glob("*/*.safetensors")}
    assert done.items() <= again.items()
    assert files(there) == files(here)
