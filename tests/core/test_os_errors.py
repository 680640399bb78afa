"""Errors of writing where there is no room: one line that names the place, and what to do."""

import errno
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from edgepack.core.disk import atomic
from edgepack.core.executor import Threads
from edgepack.core.os_errors import from_os_error
from edgepack.core.progress import finish
from edgepack.core.weight_files import save_tensors
from tests.support.dying import fork
from tests.support.stages import Made, ended


def save(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(1 << 18))


WRITERS = {
    "python": lambda path: path.write_bytes(bytes(1 << 20)),
    "numpy": lambda path: np.zeros(1 << 18).tofile(path),
    "saved": save,
    "copied": lambda path: shutil.copyfile("/proc/self/exe", path),
}


@pytest.fixture(autouse=True)
def cache_root(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path, writer):
    with atomic(path) as temporary:
        WRITERS[writer](temporary)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a file that is always full")
@pytest.mark.parametrize("writer", WRITERS)
def test_whatever_writes_the_place_is_named(tmp_path, writer):
    (tmp_path / "x.tmp").symlink_to("/dev/full")
    with pytest.raises((OSError, ValueError)) as raised:
        write(tmp_path / "x", writer)
    known = from_os_error(raised.value)
    assert known.message == f"the disk is full (writing {tmp_path / 'x'})" or writer == "copied"
    assert str(tmp_path) in known.message
    assert f"{tmp_path} has " in known.hint
    assert "make room and run again" in known.hint
    assert list(tmp_path.iterdir()) == []


def test_a_stage_that_cannot_be_written_names_its_folder(tmp_path, cache_root):
    class Full(Made):
        def run(self, folder, executor):
            yield from super().run(folder, executor)
            raise OSError(errno.EDQUOT, "Disk quota exceeded")  # as of a file that is open

    stage = Full()
    with pytest.raises(OSError, match="quota") as raised:
        finish(stage.complete(Threads()))
    known = from_os_error(raised.value)
    assert known.message == f"your quota of the disk is used up (writing {stage.partial})"
    assert "`edgepack cache ls`" in known.hint
    assert (stage.partial / "made-0").exists()  # for the next run


@pytest.mark.parametrize("writer", [*WRITERS, "safetensors"])
def test_a_file_that_may_not_grow_is_told_from_a_full_disk(tmp_path, writer):
    numpys = writer in ("numpy", "saved")  # numpy says no reason
    said = "the disk is full" if numpys else "larger than the disk or `ulimit -f`"

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            if writer == "safetensors":
                save_tensors(tmp_path / "x", {"x": torch.zeros(1 << 20)}, {})
            else:
                write(tmp_path / "x", writer)
        except Exception as error:
            known = from_os_error(error)
            good = (said in known.message) and str(tmp_path) in known.message
            os._exit(7 if good else 8)

    assert ended(fork(limited)) == 7
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_none_of_these():
    assert from_os_error(ValueError("a bug")) is None
    assert from_os_error(OSError(errno.ENOENT, "none", "x")) is None
