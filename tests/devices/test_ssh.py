"""A machine behind ssh: a real server on loopback, reached by the user's own client."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import psutil
import pytest

from edgepack import devices
from edgepack.errors import EdgepackError, RecipeError
from tests.contracts.test_devices import *  # noqa: F403  (the contract, for a device that is remote)
from tests.support.phone import broken_off, command, on_path, ssh_server, words


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The host's name, the server's folder, and the client."""
    folder, client = tmp_path_factory.mktemp("ssh") / "server", shutil.which("ssh")
    with pytest.MonkeyPatch.context() as patch, ssh_server(folder, patch) as host:
        yield host, folder, client


@pytest.fixture(scope="module")
def device(server):
    with devices.get("ssh:box") as found:
        yield found


def files(server) -> list[str]:
    cache = server[1] / "cache/edgepack/pushed"
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())


def test_a_run_leaves_only_what_was_pushed(server, tmp_path):
    (tmp_path / "model").write_text("weights")
    with devices.get("ssh:box") as device:
        device.clear()
        device.push(tmp_path / "model")
        device.run(["sh", "-c", "echo > file; pwd"], 20)
    assert [Path(name).name for name in files(server)] == ["model"]


def test_a_rerun_sends_nothing(server, tmp_path):
    (tmp_path / "model").write_bytes(os.urandom(1 << 20))
    stamps = []
    for _ in range(2):
        with devices.get("ssh:box") as device:
            place = Path(device.push(tmp_path / "model"))
        stamps.append((place, place.stat().st_mtime_ns, place.stat().st_ino))
    assert stamps[0] == stamps[1]


def test_a_file_that_was_damaged_there_is_sent_again(device, tmp_path):
    (tmp_path / "model").write_text("weights")
    place = Path(device.push(tmp_path / "model"))
    place.write_text("weighty")
    assert Path(device.push(tmp_path / "model")).read_text() == "weights"


@pytest.mark.usefixtures("server")
def test_the_connection_is_shared_and_ends_with_the_device():
    with devices.get("ssh:box") as device:
        device.describe()
        sockets = device._sockets
        assert len(list(sockets.iterdir())) == 1
    assert not sockets.exists()


def sessions(word: str) -> list[psutil.Process]:
    """Processes of the server that have a word in their title."""
    children = psutil.Process().children(recursive=True)
    return [process for process in children if word in " ".join(words(process))]


def kill_sessions() -> None:
    for process in sessions("@notty"):
        process.kill()


def test_a_connection_that_breaks_during_a_run(server):
    with devices.get("ssh:box") as own:
        error = broken_off(
            lambda: own.run(["sleep", "77"], 60),
            when=lambda: sessions("sleep 77"),
            by=kill_sessions,
        )
        assert str(error).startswith("ssh:box: ")
        assert "\n" not in str(error)
        deadline = time.monotonic() + 10
        while (sessions("sleep 77") or scratch(server)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (sessions("sleep 77"), scratch(server)) == ([], [])
        assert own.run(["echo", "again"], 20).stdout == "again\n"


def scratch(server) -> list[str]:
    return [name for name in files(server) if name.startswith("scratch/")]


@pytest.fixture
def config(server, monkeypatch, tmp_path):
    """Makes ``ssh`` use another configuration."""

    def use(text: str) -> None:
        (tmp_path / "config").write_text(text)
        command(tmp_path / "bin", "ssh", f'exec {server[2]} -F {tmp_path}/config "$@"')
        on_path(tmp_path / "bin", monkeypatch)

    return use


def test_an_unknown_host_key(server, config):
    config((server[1] / "ssh_config").read_text().replace("known_hosts", "no_hosts"))
    error = refused("ssh:box")
    assert str(error).endswith("Host key verification failed.")
    assert error.hint == "connect by hand once and compare the key: ssh box"


def test_a_key_that_the_server_does_not_know(server, config):
    config((server[1] / "ssh_config").read_text().replace("/user\n", "/host\n"))
    error = refused("ssh:box")
    assert "Permission denied" in str(error)
    assert "ssh-copy-id box" in error.hint


def test_a_server_that_does_not_answer(config):
    config("Host box\n HostName 127.0.0.1\n Port 1\n")
    error = refused("ssh:box")
    assert "Connection refused" in str(error)
    assert "start its ssh server" in error.hint


def refused(text: str) -> EdgepackError:
    with devices.get(text) as device, pytest.raises(EdgepackError) as caught:
        device.describe()
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("address", ["", "-oProxyCommand=x"])
def test_an_address_is_a_host(address):
    with pytest.raises(RecipeError, match="ssh: needs a host"):
        devices.get(f"ssh:{address}")
