"""This machine as a device, beyond what every device must keep (`tests/contracts/test_devices`)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from edgepack import devices
from edgepack.core.disk import sha256
from edgepack.devices.base import files_of
from edgepack.errors import EdgepackError, RecipeError


@pytest.fixture
def local():
    return devices.get("local")


def test_an_unknown_device_gets_a_hint():
    with pytest.raises(RecipeError, match="no 'locale'") as refused:
        devices.get("locale:x")
    assert refused.value.hint == "did you mean local?"


def test_this_machine_has_no_address():
    with pytest.raises(RecipeError, match="local: has no address, not 'here'"):
        devices.get("local:here")


def test_files_stay_where_they_are(local, tmp_path):
    (tmp_path / "file").write_text("a")
    (tmp_path / "link").symlink_to("file")
    assert local.push(tmp_path / "link") == str(tmp_path / "file")
    local.pull(str(tmp_path / "file"), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "a"


def test_much_output_is_all_there(local):
    found = local.run(["head", "-c", "3000000", "/dev/zero"], 20)
    assert found.stdout == "\0" * 3_000_000


def test_output_is_left_as_it_is_but_for_what_is_no_text(local):
    assert local.run(["printf", r"a\r\nb\rc\377"], 20).stdout == "a\r\nb\rc\ufffd"


def test_what_stays_in_the_background_is_not_waited_for(local):
    start = time.monotonic()
    found = local.run(["sh", "-c", "sleep 20 & echo $!"], 10)
    assert time.monotonic() - start < 8
    os.kill(int(found.stdout), signal.SIGKILL)


@pytest.mark.slow
def test_what_a_command_started_is_killed_with_it(local, tmp_path):
    file = tmp_path / "pid"
    with pytest.raises(EdgepackError, match="did not end"):
        local.run(["sh", "-c", f"sleep 30 & echo $! > {file}; wait"], 1)
    pid = int(file.read_text())
    deadline = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


INTERRUPTED = """
import sys
from edgepack import devices
try:
    devices.get("local").run(["sh", "-c", f"echo $$ > {sys.argv[1]}; sleep 30"], 60)
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.slow
def test_ctrl_c_ends_the_command_too(tmp_path):
    file = tmp_path / "pid"
    command = [sys.executable, "-c", INTERRUPTED, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        while not (file.exists() and file.read_text()):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0] == b"stopped\n"
    assert not is_running(int(file.read_text()))


@pytest.mark.parametrize(
    ("command", "why"),
    [(["/"], "Permission denied"), (["/no/program"], "No such file")],
)
def test_why_a_program_cannot_be_started(local, command, why):
    with pytest.raises(EdgepackError, match=why):
        local.run(command, 20)


def test_a_killed_measuring_program_is_an_error(local):
    with pytest.raises(EdgepackError, match="sh: was killed"):
        local.run(["sh", "-c", "kill -9 $PPID"], 20)


def test_files_of_a_folder_begin_with_its_name(tmp_path):
    folder = tmp_path / "out"
    (folder / "onnx").mkdir(parents=True)
    for name in ("b", "onnx/a"):
        (folder / name).write_text(name)
    assert files_of(folder) == {"out/b": folder / "b", "out/onnx/a": folder / "onnx" / "a"}
    assert files_of(folder / "b") == {"b": folder / "b"}
    assert sha256(folder / "b")[:8] == "3e23e816"
