"""The tests that need a device which is not the CPU, in a process that has one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
MARK = "pytestmark = pytest.mark.pretend\n"


@pytest.mark.slow
def test_they_pass():
    files = [path for path in TESTS.rglob("test_*.py") if MARK in path.read_text()]
    assert len(files) > 3
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "pretend", *map(str, files)],
        cwd=TESTS.parent,
        env=os.environ | {"EDGEPACK_PRETENDED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
