"""The wheel, installed where nothing of the checkout can be imported, packs a model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.support.tiny import TEXT, make_model

pytestmark = pytest.mark.slow

pytest.importorskip("setuptools", reason="builds the wheel; no network in tests")

ROOT = Path(__file__).parents[2]
KINDS = (
    ".py",
    ".yaml",
    ".html",
    ".cpp",
    ".h",
    ".css",
    ".js",
    ".json",
    ".svg",
    ".txt",
    ".webmanifest",
)
"""Endings of the files of the package, beside py.typed."""
NEEDED = ("pyproject.toml", "README.md", "LICENSE")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
OFFLINE = ("--no-index", "--no-deps")
RECIPE = {
    "model": "model",
    "compress": {"format": "f16", "embeddings": "f16"},
    "export": {"measure": {"text": "text.txt", "tokens": 128, "context": 64}},
}
"""In f16, for which nothing is compiled: that takes half a minute in every new installation."""


def call(*command: object, cwd: Path, **environment: str) -> str:
    """What a command prints that must not fail."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools writes beside the sources, and takes along what lies there."""
    copy, folder = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "edgepack", copy / "edgepack", ignore=shutil.ignore_patterns("__pyc*"))
    for name in NEEDED:
        shutil.copy(ROOT / name, copy)
    call(*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", folder, copy, cwd=copy)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def outside(wheel, tmp_path_factory) -> Path:
    """A virtual environment with the wheel, which sees the libraries that are installed here."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (own,) = folder.glob("lib/python*/site-packages")
    # libraries only: hooks of editable installs in that folder are not run from here
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (own / "libraries.pth").write_text("\n".join(libraries) + "\n")
    call(*PIP, "--python", python, "install", *OFFLINE, "--no-compile", wheel, cwd=folder)
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if ".dist-info/" not in name}
    here = [path for path in (ROOT / "edgepack").rglob("*") if path.suffix in KINDS]
    wanted = {path.relative_to(ROOT).as_posix() for path in here} | {"edgepack/py.typed"}
    assert package == wanted
    assert sum(name.startswith("edgepack/recipe/examples/") for name in names) >= 2
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_only_the_wheel_s_package_is_imported(outside, tmp_path):
    code = "import edgepack, sys; print(edgepack.__file__); print(*sys.path, sep='\\n')"
    file, *path = call(outside / "bin/python", "-c", code, cwd=tmp_path).splitlines()
    assert Path(file).is_relative_to(outside)
    assert str(ROOT) not in path


def test_it_plans_and_builds(outside, tmp_path):
    program = outside / "bin" / "edgepack"
    help_text = call(program, "--help", cwd=tmp_path)
    assert "build" in help_text
    assert "plan" in help_text
    written = call(program, "init", "quickstart", cwd=tmp_path)
    assert "quickstart" in written
    make_model(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n".join(TEXT * 30))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    cache = str(tmp_path / "cache")
    assert "decompose" in call(program, "plan", "recipe.yaml", cwd=tmp_path, EDGEPACK_CACHE=cache)
    command = (program, "build", "recipe.yaml", "--target", "gguf", "--json")
    manifest = json.loads(call(*command, cwd=tmp_path, EDGEPACK_CACHE=cache, OMP_NUM_THREADS="1"))
    assert (tmp_path / "recipe-gguf" / "base.gguf").stat().st_size > 10_000
    if find_spec("llama_cpp"):
        assert 0 <= manifest["measured"]["results"]["edgepack"]["kl_mean"] < 0.01
    assert "base.gguf" in call(program, "show", "recipe-gguf", "--json", cwd=tmp_path)
