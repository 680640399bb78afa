"""One compiled host, and one random packed model, for all tests of the app."""

from __future__ import annotations

import json

import pytest

from tests.android.host import compiled, programs, running
from tests.support.bases import packed_base


@pytest.fixture(scope="session")
def classes(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder as `edgepack build` writes it, as far as the app reads it."""
    packed, _ = packed_base(tmp_path_factory.mktemp("base"))
    files = {name: {"sha256": sha256} for name, sha256 in packed.files.items()}
    (packed.folder / "manifest.json").write_text(json.dumps({"files": files}))
    return packed


@pytest.fixture
def host(classes, tmp_path):
    """The host with the programs that chat and measure."""
    there = programs(tmp_path / "programs", ("chat", "bench"))
    with running(classes, there, tmp_path / "files", tmp_path / "cpuinfo") as found:
        yield found
