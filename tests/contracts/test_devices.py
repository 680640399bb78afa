"""What every device must keep. Those with an address are named in the environment:
``EDGEPACK_TEST_DEVICES='shell:ssh pi@10.0.0.5' python -m pytest tests/contracts/test_devices.py``
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest

from edgepack import devices
from edgepack.core import plugins
from edgepack.devices.base import Device
from edgepack.errors import EdgepackError

DEVICES = ["local", *filter(None, os.environ.get("EDGEPACK_TEST_DEVICES", "").split(";"))]
MIB = 1 << 20
ROUNDS = 100
"""Copies of 64 MiB that take longer than a device needs to see the memory."""
BYTES = bytes(range(256)) * 5 + b"\r\n"
"""No text, and no end of a line at its end."""


@pytest.fixture(params=DEVICES, ids=lambda text: text.partition(":")[0])
def device(request) -> Iterator[Device]:
    with devices.get(request.param) as found:
        yield found


def read(device: Device, place: str, tmp_path) -> bytes:
    device.pull(place, tmp_path / "again")
    return (tmp_path / "again").read_bytes()


def stamp(device: Device, place: str) -> str:
    return device.run(["stat", "-c", "%i %y", place], 20).stdout


def test_it_is_a_plug_in_of_its_name(device):
    assert device.name in plugins.names("devices")
    assert type(device) is plugins.find("devices", device.name)


def test_a_file_comes_back_as_it_went(device, tmp_path):
    path = tmp_path / "it's a file.bin"
    path.write_bytes(BYTES)
    place = device.push(path)
    assert place.startswith("/")
    assert place.endswith("/it's a file.bin")
    assert read(device, place, tmp_path) == BYTES
    counted = device.run(["wc", "-c", place], 20)
    assert counted.exit_code == 0
    assert counted.stdout.split()[0] == str(len(BYTES))


def test_what_is_there_is_not_sent_again(device, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(BYTES)
    place = device.push(path)
    before = stamp(device, place)
    assert before
    os.utime(path)
    before = stamp(device, place)  # this machine's files are the device's own
    time.sleep(0.02)
    assert device.push(path) == place
    assert stamp(device, place) == before


def test_other_bytes_under_the_same_name_are_sent(device, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(BYTES)
    device.push(path)
    path.write_bytes(BYTES[::-1])
    assert read(device, device.push(path), tmp_path) == BYTES[::-1]


def test_files_of_one_name_do_not_take_each_other_s_place(device, tmp_path):
    places = []
    for name in ("ours", "stock"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "base.gguf").write_text(name)
        places.append(device.push(tmp_path / name / "base.gguf"))
    assert [read(device, place, tmp_path) for place in places] == [b"ours", b"stock"]


def test_a_folder_keeps_its_names(device, tmp_path):
    folder = tmp_path / "out"
    (folder / "onnx").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "onnx" / "model.onnx_data").write_bytes(BYTES)
    place = device.push(folder)
    assert place.endswith("/out")
    assert read(device, f"{place}/onnx/model.onnx_data", tmp_path) == BYTES
    assert read(device, f"{place}/config.json", tmp_path) == b"{}"


def test_what_a_command_says(device):
    script = "echo out; echo err >&2; exit 3"
    found = device.run(["sh", "-c", script], 20)
    assert (found.stdout, found.stderr, found.exit_code) == ("out\n", "err\n", 3)


def test_words_arrive_as_they_are(device):
    words = ["a b", "", "it's", '"', "$HOME", "*", "\\n", "two\nlines", "é狐", "; exit 9", "-x"]
    found = device.run(["printf", "<%s>", *words], 20)
    assert found.exit_code == 0
    assert found.stdout == "".join(f"<{word}>" for word in words)


def test_there_is_no_input(device):
    assert device.run(["cat"], 20).stdout == ""


@pytest.mark.slow
def test_time_is_that_of_the_command(device):
    assert 0.3 <= device.run(["sleep", "0.3"], 20).seconds < 5


def test_a_signal_is_a_negative_exit_code(device):
    assert device.run(["sh", "-c", "kill -9 $$"], 20).exit_code == -9


@pytest.mark.slow
def test_memory_is_that_of_the_command_and_not_of_this_process(device):
    ballast = b"\1" * (200 * MIB)
    copy = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M"]
    small = device.run(["sleep", "0.5"], 20).peak_bytes  # some look five times a second
    large = device.run([*copy, f"count={ROUNDS}"], 60).peak_bytes
    assert len(ballast) == 200 * MIB
    assert (small is None) == (large is None)
    if small is not None and large is not None:
        assert small < 32 * MIB
        assert 64 * MIB <= large < 96 * MIB


@pytest.mark.slow
def test_what_does_not_end_is_killed(device, tmp_path):
    here = tmp_path / "mark"
    here.write_text("")
    place = device.push(here) + ".late"
    with pytest.raises(EdgepackError, match=r"sh did not end within 0\.5 s"):
        device.run(["sh", "-c", f"sleep 1.2; touch '{place}'"], 0.5)
    time.sleep(1.5)
    assert device.run(["test", "-e", place], 20).exit_code == 1


def test_an_unknown_program_is_named(device):
    with pytest.raises(EdgepackError, match="no-such-program") as refused:
        device.run(["no-such-program", "--help"], 20)
    assert "\n" not in str(refused.value)
    assert refused.value.hint


def test_a_file_that_is_not_there_is_named(device, tmp_path):
    with pytest.raises(EdgepackError, match="/no/such/file"):
        device.pull("/no/such/file", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EdgepackError, match="nothing: no such file or folder"):
        device.push(tmp_path / "nothing")


def test_it_says_what_it_is(device):
    about = device.describe()
    assert json.loads(json.dumps(about)) == about
    assert 1 <= about["cores"] < 10_000
    assert 16 * MIB < about["memory"] < 1 << 50
    assert about["machine"] == device.run(["uname", "-m"], 20).stdout.strip()
    found = device.condition()
    assert json.loads(json.dumps(found)) == found
    assert 0 <= found["load"] < 10_000


def test_what_was_pushed_is_still_there_after_a_run_and_gone_when_cleared(device, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(BYTES)
    place = device.push(path)
    device.close()
    assert read(device, place, tmp_path) == BYTES
    if device.clear():  # this machine's files stay where they are
        assert device.run(["test", "-e", place], 20).exit_code == 1
