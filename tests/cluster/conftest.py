"""Nodes for all tests of the cluster: one shares the files of the tests, the other takes none."""

from __future__ import annotations

import pytest

from tests.support.ray_cluster import AUTHENTICATION, RayCluster


@pytest.fixture(scope="package", autouse=True)
def token():
    """That of the nodes. Ray looks for it once in a process, at the first address that it tries."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in AUTHENTICATION.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="package")
def nodes(tmp_path_factory):
    """A head without cores, and two nodes with one each."""
    cluster = RayCluster(tmp_path_factory.mktemp("ray"))
    try:
        cluster.start("head", 0)
        cluster.wait()
        cluster.start("near")
        cluster.start("far", EDGEPACK_NOTHING_SHARED="1")
        cluster.wait()
        yield cluster
    finally:
        cluster.stop()
