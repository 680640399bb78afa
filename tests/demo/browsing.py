"""Chromium at the size of a phone, driven by tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("driver.mjs")


class Browser:
    """A page; `run` runs JavaScript of Playwright in it."""

    def __init__(self, process):
        self._process = process
        self.problems = []

    def run(self, code, **values):
        """What the code returns; `page`, `context` and `values` are there."""
        self._process.stdin.write(json.dumps({"code": code, "values": values}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        self.problems += answer["problems"]
        assert "error" not in answer, answer
        return answer.get("value")


def needs():
    """(folder of node's modules, Chromium); the test is skipped where one is missing."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    modules = os.environ.get("EDGEPACK_NODE")
    if not modules:
        pytest.skip("EDGEPACK_NODE is not set; name a folder where npm installed playwright-core")
    if not (Path(modules) / "node_modules/playwright-core").is_dir():
        pytest.skip(f"npm has not installed playwright-core in {modules}")
    return modules, chromium


@contextmanager
def browsing(device="Pixel 7", make=lambda browser: browser, **options):
    """A browser with an empty profile, or what `make` makes of it."""
    modules, chromium = needs()
    given = json.dumps({"device": device, "locale": "en-US", **options})
    command = ["node", str(DRIVER), modules, chromium, given]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield make(Browser(process))
        finally:
            process.stdin.close()
            process.wait(20)
