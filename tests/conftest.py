"""For all tests: one thread, and a cache of their own."""

from __future__ import annotations

import os
import sys

import psutil
import pytest
import torch

PRETENDED = "EDGEPACK_PRETENDED"
"""Set in the process of `tests/core/test_pretended.py`, which has a pretended device."""


def pytest_configure() -> None:
    if os.environ.get(PRETENDED):
        from tests.support.pretend import register

        register()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a pretended device run in a process of their own."""
    if not os.environ.get(PRETENDED):
        skip = pytest.mark.skip(reason="tests/core/test_pretended.py runs it in a process apart")
        for item in items:
            if item.get_closest_marker("pretend"):
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tensors are so small here that waking a second thread costs more than the work. llama.cpp
    asks psutil, and its threads wait for each other by spinning: seconds on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psutil, "cpu_count", lambda logical=True: 1)
        patch.setenv("OMP_NUM_THREADS", "1")  # for processes that tests start
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def closed_files():
    """llama-cpp-python opens /dev/null twice on import and leaves closing to the interpreter, which
    complains."""
    yield
    if module := sys.modules.get("llama_cpp._utils"):
        module.outnull_file.close()
        module.errnull_file.close()


@pytest.fixture(scope="module")
def float32_products():
    """Builds of this process calibrate with the same products on every CPU, for tests in which the
    last digit of a calibration decides: of an expert, of a character of random text."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("stage", "text"):
            name = f"edgepack.calibration.{module}.product_type"
            patch.setattr(name, lambda _: torch.float32)
        yield


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Tests neither find nor leave anything in the user's cache: that of stages, and the folder of
    all caches, where digests of large files are kept. Nor do they find what other modules made, so
    that their order does not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield
