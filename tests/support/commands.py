"""The command line in this process, on recipes small enough to build in a second."""

from __future__ import annotations

from pathlib import Path

import yaml
from typer.testing import CliRunner

from edgepack.cli import app

RECIPE = {
    "model": "llama",
    "calibrate": {"source": "text.txt", "tokens": 512, "sequence_length": 64},
    "compress": {"format": "q4_0", "rank": 4, "factors": "f16", "damping": [0.1]},
    "export": {"measure": {"tokens": 256, "context": 64}},
}


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def fails(*arguments):
    """The error and hint of a command that must fail with two lines, and its exit code."""
    before = set(Path.cwd().rglob("*"))
    result = run(*arguments)
    error, hint, *rest = result.stderr.splitlines()
    assert result.stdout == ""
    assert not rest
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert set(Path.cwd().rglob("*")) == before, "something was left behind"
    return error, hint, result.exit_code


def write(path, **changes):
    """RECIPE with sections changed key by key."""
    recipe = dict(RECIPE)
    for section, change in changes.items():
        both = isinstance(change, dict) and isinstance(recipe.get(section), dict)
        recipe[section] = recipe[section] | change if both else change
    path.write_text(yaml.safe_dump(recipe))
    return path
