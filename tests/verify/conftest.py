"""Everything that edgepack makes, twice: on machines that have nothing in common but their kind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.everything import write_inputs

MARK = "kranzmeier"
"""In all that the first machine is called by: user, host, folders, token."""
TOKEN = "hf_QxKranzmeierTokenZ"
ROOT = Path(__file__).parents[2]
UNSHARE = ["unshare", "--net", "--uts"]


@dataclass(frozen=True)
class Built:
    """Where everything is: of the first machine and of the second. `is_cut` says whether the first
    one had no network."""

    first: Path
    second: Path
    is_cut: bool


def can_unshare() -> bool:
    """Whether a process may have a network of its own."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    tried = subprocess.run([*UNSHARE, "ip", "link", "set", "lo", "up"], capture_output=True)
    return tried.returncode == 0


def environment(place: Path, **more: str) -> dict[str, str]:
    """Variables of a machine whose folders are all in `place`, and nothing of this one's."""
    own = {"HOME": place, "EDGEPACK_CACHE": place / "cache", "TMPDIR": place / "tmp"}
    for folder in own.values():
        folder.mkdir(exist_ok=True)
    known = {key: str(path) for key, path in own.items()}
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **known, **more}


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Built:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("uvicorn")
    root = tmp_path_factory.mktemp("built")
    first, second = root / f"home-{MARK}" / "work", root / "b" / "deeper" / "still"
    write_inputs(first / "in")
    second.mkdir(parents=True)
    shutil.copytree(first / "in", second / "in")
    cut = can_unshare()
    before = [*UNSHARE, "sh", "-c", f'ip link set lo up; hostname {MARK}-9; exec "$@"', "sh"]
    program = [sys.executable, "-m", "tests.support.everything"]
    named = {"LOGNAME": MARK, "USER": MARK, "USERNAME": MARK, "HF_TOKEN": TOKEN}
    settings = {
        first: {"PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo", "LC_ALL": "C", "OMP_NUM_THREADS": "1"},
        second: {"PYTHONHASHSEED": "77", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "2"},
    }
    settings[first] |= named
    settings[second] |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
    commands = {
        first: [*(before if cut else ()), *program, str(first), "all"],
        second: [*program, str(second), "files"],
    }
    running = []
    for place, command in commands.items():
        log = (place / "log.txt").open("w")
        variables = environment(place, **settings[place])
        running.append(
            (place, subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd=place))
        )
        log.close()
    for place, process in running:
        assert process.wait(timeout=400) == 0, (place / "log.txt").read_text()
    return Built(first, second, cut)
