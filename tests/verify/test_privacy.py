"""Nothing of the machine is in what people publish, and nothing leaves it."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib

import pytest

from edgepack.core.telemetry import SWITCHES
from tests.support.everything import COUNTERS
from tests.verify.conftest import MARK, TOKEN, UNSHARE, can_unshare, environment

pytestmark = pytest.mark.slow


def texts_of_png(data):
    """Kinds of its chunks → contents, unpacked where they are packed."""
    at, found = 8, []
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        content = data[at + 8 : at + 8 + size]
        if kind in (b"zTXt", b"iTXt", b"iCCP"):
            _, _, packed = content.partition(b"\0")
            content = zlib.decompress(packed[1:]) if kind != b"iTXt" else content
        found.append((kind, content))
        at += size + 12
    return found


def test_no_byte_of_any_file_names_the_machine(built):
    """User, host, HOME, cache, temporary folder and token of the first machine have MARK in them.
    What commands print is there too, in ``out/said``."""
    marks = [word.encode(code) for word in (MARK, TOKEN) for code in ("utf-8", "utf-16-le")]
    paths = [path for path in (built.first / "out").rglob("*") if path.is_file()]
    named = [
        path.relative_to(built.first).as_posix()
        for path in paths
        if any(mark.lower() in path.read_bytes().lower() for mark in marks)
    ]
    assert named == []
    kinds = {path.suffix for path in paths}
    assert {".gguf", ".onnx", ".onnx_data", ".safetensors", ".json", ".png", ".svg"} <= kinds
    for path in paths:
        if path.suffix == ".png":
            texts = [text for kind, text in texts_of_png(path.read_bytes()) if b"TXt" in kind]
            assert texts == []
        if path.suffix == ".svg":
            assert "<dc:date>" not in path.read_text()


def test_nothing_tries_to_reach_the_network(built):
    """build, finetune, merge, bench, chat, evaluate, verify and serve ran without a network; the
    kernel counted what they, their libraries and their processes tried."""
    if not built.is_cut:
        pytest.skip("a process may not have a network of its own here (unshare --net)")
    assert json.loads((built.first / COUNTERS).read_text()) == {"no_routes": 0, "udp": 0, "tcp": 0}


def test_the_kernel_counts_what_is_tried(tmp_path):
    """The test above can fail: a name that is looked up, and an address, are counted."""
    if not can_unshare():
        pytest.skip("a process may not have a network of its own here (unshare --net)")
    program = (
        "import socket; from tests.support.network import counters\n"
        "for call in (lambda: socket.getaddrinfo('example.org', 80),"
        " lambda: socket.create_connection(('192.0.2.1', 80), 1)):\n"
        "    try: call()\n"
        "    except OSError: pass\n"
        "print(counters())"
    )
    command = [*UNSHARE, "sh", "-c", 'ip link set lo up; exec "$@"', "sh", sys.executable, "-c"]
    said = subprocess.run(
        [*command, program], env=environment(tmp_path), capture_output=True, text=True, check=True
    ).stdout
    assert "'no_routes': 0" not in said or "'udp': 0" not in said


def test_libraries_leave_no_identifier(built):
    """onnxruntime would write one into the cache folder of the user."""
    home = built.first
    assert not list(home.rglob("deviceid"))
    assert not list(home.rglob("*.ses"))


def test_usage_data_is_off_before_a_library_is_loaded(tmp_path):
    program = (
        "import os, sys, edgepack\n"
        "loaded = {'huggingface_hub', 'onnxruntime', 'transformers'} & set(sys.modules)\n"
        "from huggingface_hub import constants\n"
        "print(sorted(loaded), constants.HF_HUB_DISABLE_TELEMETRY, os.environ['MINE'],"
        " [os.environ[name] for name in sorted(edgepack.telemetry.SWITCHES)])"
    )
    for given in ({}, {"DO_NOT_TRACK": "0"}):
        variables = environment(tmp_path, MINE="kept", **given)
        said = subprocess.run(
            [sys.executable, "-c", program],
            env=variables,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        values = [given.get(name, value) for name, value in sorted(SWITCHES.items())]
        assert said.strip() == f"[] True kept {values}"


def test_the_card_names_the_telemetry_of_others(built):
    card = (built.first / "out/onnx/README.md").read_text()
    assert "ORT_DISABLE_TELEMETRY=1" in card
    assert "sbom.cdx.json" in card
