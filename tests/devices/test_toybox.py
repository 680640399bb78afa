"""The shell and the tools that Android has, mksh and toybox, in place of those of this machine.

`adb` is a stub here. What runs in the scripts of `edgepack.devices` is nothing but these two.
"""

from __future__ import annotations

import shutil
import subprocess

import pytest

from edgepack import devices
from tests.contracts.test_devices import *  # noqa: F403  (the contract, for these tools)
from tests.support.phone import command, on_path, tools


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    folder, host = tmp_path_factory.mktemp("toybox"), tools() / "host/bin"
    toybox, android = host / "toybox", folder / "android"
    android.mkdir()
    for name in subprocess.run([toybox], capture_output=True, text=True, check=True).stdout.split():
        (android / name).symlink_to(toybox)
    (android / "dd").symlink_to(str(shutil.which("dd")))  # Debian leaves it out, Android does not
    (android / "sh").unlink(missing_ok=True)
    (android / "sh").symlink_to(host / "mksh")
    stub = f'PATH={android} HOME={folder} exec {host}/mksh -c "$5"'
    listed = "printf 'List of devices attached\\nR58M\\tdevice\\n'"
    command(folder / "bin", "adb", f"[ $1 = devices ] && exec {listed}\n{stub}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgepack.devices.adb.Adb.root", str(folder / "phone"))
        on_path(folder / "bin", patch)
        with devices.get("adb") as found:
            yield found


def test_nothing_else_is_used(device):
    path = device.run(["sh", "-c", "echo $PATH $KSH_VERSION"], 20).stdout
    assert path.split()[0].endswith("/android")
    assert "MIRBSD KSH" in path


def test_what_a_command_started_is_killed_with_it(device, tmp_path):
    with pytest.raises(EdgepackError, match="did not end"):  # noqa: F405
        device.run(["sh", "-c", f"sleep 30 & echo $! >{tmp_path}/pid; wait"], 1)
    state = device.run(["ps", "-o", "S=", "-p", (tmp_path / "pid").read_text().strip()], 20).stdout
    assert state.strip() in ("", "Z")
