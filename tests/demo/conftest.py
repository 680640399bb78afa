"""A packed model and a relay for the tests of the page."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import edgepack
from edgepack.adapters import files
from edgepack.adapters.base import PackedBase
from tests.demo.browsing import needs
from tests.demo.relaying import Page, programs, relaying
from tests.support.adapters import packed, random_adapter
from tests.support.commands import write
from tests.support.tiny import TEXT, make_model


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("relay") / "cache"
    programs(folder)
    return folder


@pytest.fixture
def own_cache(tmp_path):
    """A cache beside that of another relay."""
    programs(tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A small random packed model with one set of notes."""
    out = packed(tmp_path_factory.mktemp("place"), export={"measure": {"tokens": 0}})
    base = PackedBase.open(out)
    files.write(files.place(out, "second"), random_adapter(base, seed=1, size=0.6), base)
    return out


@pytest.fixture(scope="session")
def talker(tmp_path_factory):
    """A random packed model that is slow enough to be caught in the middle of an answer."""
    place = tmp_path_factory.mktemp("talker")
    shape = {"hidden": 256, "layers": 8, "intermediate": 512, "max_position_embeddings": 4096}
    make_model(place / "llama", "llama", **shape)
    (place / "text.txt").write_text("\n".join(TEXT * 30))
    out = place / "packed"
    recipe = write(place / "recipe.yaml", export={"measure": {"tokens": 0}})
    edgepack.build(recipe, "gguf", out=out)
    base = PackedBase.open(out)
    files.write(files.place(out, "second"), random_adapter(base, seed=1, size=0.6), base)
    return out


@pytest.fixture
def shown(request, tmp_path):
    """The model on the page: the random one, or a copy of ``EDGEPACK_DEMO_MODEL``, which has
    something to say."""
    needs()
    given = os.environ.get("EDGEPACK_DEMO_MODEL") or request.getfixturevalue("talker")
    out = tmp_path / Path(given).name
    shutil.copytree(given, out)
    return out


@pytest.fixture
def page_relay(shown, cache):
    with relaying(cache, shown) as relay:
        yield relay


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def folder(small, place):
    out = place / small.name
    shutil.copytree(small, out)
    return out


@pytest.fixture(scope="module")
def relay(folder, cache):
    with relaying(cache, folder) as relay:
        yield relay


@pytest.fixture
def page(relay):
    return Page(relay)


@pytest.fixture
def model(page):
    (model,) = page.last("app", "models")["models"]
    return model["id"]
