"""Packed models that several tests share."""

import pytest

from edgepack.adapters.base import PackedBase
from tests.support.adapters import packed


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A llama (whose q and k are reordered in a GGUF) with factors of rank 4."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("base")
        return PackedBase.open(packed(folder, export={"measure": {"tokens": 0}}))
