"""What adb says when a phone cannot be used, as one line each. The program `adb` is a stub here
that prints what Android's prints; `test_phone.py` has a real one, and a real adbd."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from edgepack import devices
from edgepack.errors import EdgepackError
from tests.support.phone import command, on_path

HEADER = "List of devices attached"


@pytest.fixture
def adb(tmp_path, monkeypatch):
    """Makes the stub: what `adb devices` lists, and a script for `adb -s SERIAL shell -T LINE`."""

    def make(listed: str, shell: str = 'exec sh -c "$5"') -> None:
        (tmp_path / "listed").write_text(f"{HEADER}\n{listed}\n")
        lines = f'echo "$*" >>{tmp_path}/log\n[ $1 = devices ] && exec cat {tmp_path}/listed\n'
        command(tmp_path / "bin", "adb", lines + shell)
        on_path(tmp_path / "bin", monkeypatch)

    monkeypatch.setattr("edgepack.devices.adb.Adb.root", str(tmp_path / "phone"))
    return make


def refused(address: str = "", call=lambda device: device.describe()) -> EdgepackError:
    with devices.get(f"adb:{address}") as device, pytest.raises(EdgepackError) as caught:
        call(device)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


def test_without_adb_one_reads_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    error = refused()
    assert str(error) == "adb: adb cannot be started (No such file or directory)"
    assert "apt install adb" in error.hint


def test_no_device(adb):
    adb("")
    assert str(refused()) == "adb: no device is attached"


def test_two_devices_and_none_named(adb):
    adb("R58M\tdevice\nemulator-5554\tdevice")
    error = refused()
    assert str(error) == "adb: 2 devices are attached (R58M, emulator-5554)"
    assert error.hint == "name one of them: adb:R58M"


def test_one_of_two_is_named(adb, tmp_path):
    adb("R58M\tdevice\nemulator-5554\tdevice")
    with devices.get("adb:R58M") as device:
        assert device.run(["echo", "here"], 20).stdout == "here\n"
    assert "-s R58M shell -T" in (tmp_path / "log").read_text()


def test_another_device_than_the_one_that_is_named(adb):
    adb("R58M\tdevice")
    error = refused("R59")
    assert (str(error), error.hint) == ("adb:R59: is not attached", "attached: R58M")


@pytest.mark.parametrize(
    ("state", "message", "hint"),
    [
        ("unauthorized", "adb:R58M: unauthorized", "allow USB debugging"),
        ("offline", "adb:R58M: offline", "adb reconnect"),
        ("recovery", "adb:R58M: recovery", "let it start Android"),
        ("no permissions (user in plugdev?)", "adb:R58M: no permissions", "udev"),
    ],
)
def test_states_in_which_a_device_cannot_be_used(adb, state, message, hint):
    adb(f"R58M\t{state}")
    error = refused()
    assert str(error).startswith(message)
    assert hint in error.hint


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("error: device 'R58M' not found", "went away (device 'R58M' not found)"),
        ("error: device offline", "adb: offline"),
        ("error: closed", "went away (closed)"),
        ("", "went away (the connection ended)"),
    ],
)
def test_a_device_that_goes_away(adb, said, message):
    adb("R58M\tdevice", f'echo "{said}" >&2; exit 1')
    assert message in str(refused())


def test_no_space(adb, tmp_path):
    adb("R58M\tdevice", 'df() { echo /dev/x 100 80 20 80% /data; }; eval "$5"')
    (tmp_path / "model").write_bytes(b"\0" * (3 << 20))
    error = refused("", lambda device: device.push(tmp_path / "model"))
    assert "no space left" in str(error)
    assert "(3 MiB are to be pushed, 0 are free)" in str(error)
    assert not list((tmp_path / "phone").rglob("model*"))


def test_space_that_ends_in_the_middle(adb, tmp_path):
    adb(
        "R58M\tdevice",
        'cat() { head -c 100 >/dev/null; echo "cat: No space left on device" >&2; return 1; };'
        ' eval "$5"',
    )
    (tmp_path / "model").write_bytes(b"\0" * 1000)
    error = refused("", lambda device: device.push(tmp_path / "model"))
    assert "no space left" in str(error)
    assert [p for p in (tmp_path / "phone").rglob("*") if p.is_file()] == []


def test_a_folder_that_cannot_be_made(adb, tmp_path):
    adb("R58M\tdevice")
    (tmp_path / "phone").write_text("a file")
    error = refused("", lambda device: device.run(["true"], 20))
    assert str(error).startswith(f"adb: {tmp_path}/phone cannot be made (")


def test_space_that_ends_before_a_run(adb, tmp_path):
    full = "echo 'mkdir: No space left on device' >&2; return 1"
    adb(
        "R58M\tdevice",
        f'mkdir() {{ case $* in *scratch*) {full};; *) command mkdir "$@";; esac; }}; eval "$5"',
    )
    error = refused("", lambda device: device.run(["true"], 20))
    assert str(error) == "adb: true was not run (mkdir: No space left on device)"


def test_bytes_that_change_on_the_way_are_noticed(adb, tmp_path):
    adb("R58M\tdevice", 'cat() { command cat | tr a b; }; eval "$5"')
    (tmp_path / "model").write_text("aaaa")
    error = refused("", lambda device: device.push(tmp_path / "model"))
    assert str(error) == "adb: model was not pushed (it arrived damaged)"
    assert [p for p in (tmp_path / "phone").rglob("*") if p.is_file()] == []


def test_a_folder_that_nothing_may_be_executed_in(adb, tmp_path):
    adb("R58M\tdevice")
    (tmp_path / "worker").write_text("#!/bin/sh\n")  # its mode says the same as noexec does
    error = refused("", lambda device: device.run([device.push(tmp_path / "worker")], 20))
    assert "worker cannot be started (not executable, or permission denied)" in str(error)
    assert "noexec" in error.hint


def test_what_a_killed_run_left_is_removed_a_day_later(adb, tmp_path):
    import os

    adb("R58M\tdevice")
    phone = tmp_path / "phone"
    for name, age in (("old", 90_000), ("new", 10)):
        for path in (phone / "scratch" / name / "file", phone / "key" / f"{name}.partial"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
            for changed in (path, path.parent):
                os.utime(changed, (time.time() - age,) * 2)
    with devices.get("adb") as device:
        device.run(["true"], 20)
    left = sorted(str(p.relative_to(phone)) for p in phone.rglob("*") if p.is_file())
    assert left == ["key/new.partial", "scratch/new/file"]


def test_all_that_was_pushed_can_be_removed(adb, tmp_path):
    adb("R58M\tdevice")
    (tmp_path / "model").write_bytes(b"\1" * 100_000)
    with devices.get("adb") as device:
        device.push(tmp_path / "model")
        assert 100_000 <= device.clear() < 300_000
        assert not (tmp_path / "phone").exists()
        place = device.push(tmp_path / "model")
        assert device.run(["cat", place], 20).stdout == "\1" * 100_000


def test_files_of_one_name_have_places_of_their_own(adb, tmp_path):
    adb("R58M\tdevice")
    places = []
    with devices.get("adb") as device:
        for text in ("ours", "stock"):
            (tmp_path / "base.gguf").write_text(text)
            places.append(device.push(tmp_path / "base.gguf"))
        said = [device.run(["cat", place], 20).stdout for place in places]
    assert said == ["ours", "stock"]


INTERRUPTED = """
import sys
from edgepack import devices
from edgepack.devices.adb import Adb
Adb.root = sys.argv[1]
with devices.get("adb") as device:
    try:
        device.run(["sh", "-c", f"sleep 30 & echo $! > {sys.argv[2]}; wait"], 60)
    except KeyboardInterrupt:
        print("stopped")
"""


def test_ctrl_c_ends_all_that_was_started_and_removes_its_files(adb, tmp_path):
    adb("R58M\tdevice")
    file = tmp_path / "pid"
    line = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "phone"), str(file)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, start_new_session=True) as process:
        while not (file.exists() and file.read_text()):
            time.sleep(0.01)
        process.send_signal(2)
        assert process.communicate(timeout=30)[0] == b"stopped\n"
    assert [p for p in (tmp_path / "phone").rglob("*") if p.is_file()] == []
    pid, deadline = int(file.read_text()), time.monotonic() + 5
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not psutil.pid_exists(pid)
