"""What a container lets a process have."""

import subprocess
import sys
from ctypes import sizeof

import pytest

from edgepack.checkpoint import open_checkpoint
from edgepack.core import hardware
from edgepack.core.hardware import (
    LIMIT,
    available_memory,
    control_group_limit,
    limit_memory,
    memory_limit,
    working_memory,
)
from edgepack.core.quota import BLOCK, LIMITED, Quota, quota_left
from edgepack.model import decoder
from edgepack.model.decoder import Decoder, fits_in_memory
from tests.support.tiny import make_model


def write(folder, path, text):
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "4000000\n"}, 4000000),
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("0::/a/b\n", {"a/memory.max": "500\n", "a/b/memory.max": "max\n"}, 500),
        ("0::/a/b\n", {"a/memory.max": "500\n", "a/b/memory.max": "70\n"}, 70),
        ("0::/a\n", {"a/memory.max": "500\n", "a/memory.high": "400\n"}, 400),
        ("0::/docker/1f\n", {"memory.max": "900\n"}, 900),  # the group is the root of its mount
        ("0::/../x\n", {"x/memory.max": "900\n"}, 900),
        ("4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "77\n"}, 77),
        ("4:memory:/a\n", {"memory/memory.limit_in_bytes": "78\n"}, 78),
        ("4:cpu,memory:/a\n3:pids:/b\n", {"memory/a/memory.limit_in_bytes": "79\n"}, 79),
        ("0::/a\n", {"unified/a/memory.max": "80\n"}, 80),
        ("3:pids:/b\n", {"b/memory.max": "1\n"}, None),
        ("nonsense\n\n", {"memory.max": "1\n"}, None),
        ("0::/\n", {"memory.max": "-1\n"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_the_lowest_limit_counts(tmp_path, groups, files, limit):
    write(tmp_path, "own", groups)
    for path, text in files.items():
        write(tmp_path / "mount", path, text)
    assert control_group_limit(tmp_path / "own", tmp_path / "mount") == limit


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert control_group_limit(tmp_path / "none", tmp_path) is None
    assert available_memory() > 0


def test_a_model_must_fit_into_the_container(tmp_path, monkeypatch):
    make_model(tmp_path / "model")
    model = Decoder(open_checkpoint(str(tmp_path / "model")))
    assert fits_in_memory(model)
    size = 4 * sum(spec.numel for spec in model.checkpoint.specs.values())
    for limit, fits in ((4 * size, False), (4 * size + 4, True)):
        monkeypatch.setattr(hardware, "control_group_limit", lambda limit=limit: limit)
        assert fits_in_memory(model) is fits
    assert decoder.available_memory is available_memory


@pytest.mark.parametrize(("vnni", "amx"), [(True, False), (False, True), (False, False)])
def test_int8_needs_vnni_or_amx(vnni, amx, monkeypatch):
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: vnni)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    assert hardware.multiplies_int8() is (vnni or amx)


def test_int8_is_not_claimed_where_torch_cannot_tell(monkeypatch):
    monkeypatch.delattr("torch.cpu._is_vnni_supported")
    monkeypatch.delattr("torch.cpu._is_amx_tile_supported")
    assert hardware.multiplies_int8() is False


def test_the_peak_is_this_process_own():
    """A child of a large process begins small; getrusage would say otherwise on Linux."""
    large = b"x" * (700 << 20)
    code = "from edgepack.core.hardware import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < len(large) <= hardware.peak_memory()


def test_what_the_user_allows_holds_here_and_in_processes_started_from_here(monkeypatch):
    monkeypatch.delenv(LIMIT, raising=False)
    there = available_memory()
    assert (memory_limit(), working_memory()) == (None, there * 3 // 4)
    limit_memory(5_000_000)
    say = "from edgepack.core.hardware import *; print(available_memory(), working_memory())"
    said = subprocess.run([sys.executable, "-c", say], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["5000000", "5000000"]
    limit_memory(2 * there)
    assert available_memory() == there  # there is no more
    limit_memory(None)
    assert available_memory() == there


def test_a_quota_leaves_what_its_hard_limit_does(tmp_path):
    quota = Quota(hard=1000, used=BLOCK * 400, valid=LIMITED)
    assert quota.left() == 600 * BLOCK
    assert Quota(hard=1000, used=BLOCK * 2000, valid=LIMITED).left() == 0
    assert Quota(hard=0, used=5, valid=LIMITED).left() is None
    assert Quota(hard=1000, used=5).left() is None
    assert sizeof(Quota) == 72  # <sys/quota.h>
    assert quota_left(tmp_path) is None or quota_left(tmp_path) >= 0
