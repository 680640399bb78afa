"""Android's own adbd, with an aarch64 userland under qemu: all that a phone is to adb.

``make test-device`` downloads what these tests need. They are the only ones in which adb's
protocol, another CPU and the end of a connection are real. Speeds are those of qemu.
"""

from __future__ import annotations

import os
import time

import pytest

from edgepack import devices
from edgepack.devices.base import Device
from edgepack.errors import EdgepackError
from tests.contracts.test_devices import *  # noqa: F403  (the contract, for a phone)
from tests.support.phone import SERIAL, Phone, broken_off, phone

EMULATOR = 8 << 20
"""Bytes that qemu needs at least beside the program that it runs."""


@pytest.fixture(scope="module")
def switched_on(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phone")
    with pytest.MonkeyPatch.context() as patch, phone(folder, patch) as found:
        yield found


@pytest.fixture(scope="module")
def device(switched_on):
    with devices.get(f"adb:{SERIAL}") as found:
        yield found


def test_it_is_a_phone_and_says_that_it_is_emulated(device):
    about = device.describe()
    assert about["machine"] == "aarch64"
    assert about["model"] == "edgepack sandbox"
    assert about["android"] == {"release": "14", "sdk": "34", "abi": "arm64-v8a"}
    assert about["emulated"]
    assert "features" not in about  # those of the host's CPU


def test_memory_is_polled(device):
    peak = device.run(["sleep", "0.5"], 20).peak_bytes
    assert EMULATOR < peak < 64 << 20


def test_a_rerun_pushes_nothing(switched_on, tmp_path):
    (tmp_path / "model").write_bytes(os.urandom(8 << 20))
    stamps = []
    for _ in range(2):
        with devices.get(f"adb:{SERIAL}") as device:
            place = device.push(tmp_path / "model")
        file = switched_on.storage / place.removeprefix("/data/local/tmp/")
        stamps.append((place, file.stat().st_mtime_ns, file.stat().st_ino))
    assert stamps[0] == stamps[1]


def test_a_run_leaves_only_what_was_pushed(switched_on, tmp_path):
    (tmp_path / "model").write_text("weights")
    with devices.get(f"adb:{SERIAL}") as device:
        device.clear()
        device.push(tmp_path / "model")
        device.run(["sh", "-c", "echo > file"], 20)
    assert [name.rpartition("/")[2] for name in switched_on.files()] == ["model"]


def settled(phone: Phone, name: str) -> tuple[list[str], list[str]]:
    """Files, and processes with a word in their command, when nothing changes any more."""
    deadline = time.monotonic() + 10
    while (phone.processes(name) or phone.files()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return phone.files(), [process.name() for process in phone.processes(name)]


@pytest.fixture
def own_phone(tmp_path):
    with pytest.MonkeyPatch.context() as patch, phone(tmp_path / "phone", patch) as found:
        yield found


def went_away(error: EdgepackError) -> bool:
    return str(error).startswith(f"adb:{SERIAL}: ") and "\n" not in str(error) and bool(error.hint)


def test_adbd_dies_during_a_run(own_phone):
    with devices.get(f"adb:{SERIAL}") as device:
        error = broken_off(
            lambda: device.run(["sleep", "77"], 60),
            when=lambda: own_phone.processes("77"),
            by=own_phone.kill_adbd,
        )
        assert went_away(error), str(error)
        assert settled(own_phone, "77") == ([], [])


def test_adbd_dies_during_a_push(own_phone, tmp_path):
    (tmp_path / "model").write_bytes(bytes(200 << 20))
    with devices.get(f"adb:{SERIAL}") as device:
        error = broken_off(
            lambda: device.push(tmp_path / "model"),
            when=lambda: any(name.endswith(".partial") for name in own_phone.files()),
            by=own_phone.kill_adbd,
        )
        assert went_away(error), str(error)
        assert settled(own_phone, "sha256sum") == ([], [])


def test_time_that_is_over_leaves_nothing_running(switched_on, device: Device):
    with pytest.raises(EdgepackError, match="did not end within 1 s"):
        device.run(["sh", "-c", "sleep 66 & sleep 66"], 1)
    assert switched_on.processes("66") == []
