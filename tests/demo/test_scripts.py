"""What of the page needs no browser: Markdown, notes, history, texts, requests."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

SCRIPTS = sorted(Path(__file__).parent.glob("scripts/*.test.mjs"))


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.name.split(".")[0] for path in SCRIPTS])
def test_without_a_browser(script, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    page = tmp_path / "page"  # its files are modules, which node wants to be told
    shutil.copytree(str(resources.files("edgepack.demo") / "page"), page)
    (page / "package.json").write_text('{"type": "module"}')
    done = subprocess.run(
        [node, "--test", str(script)],
        env=os.environ | {"PAGE": str(page)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "# pass 0" not in done.stdout
