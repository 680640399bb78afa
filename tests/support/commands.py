"""The command line in this process, on recipes small enough to build in a second."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import yaml
from typer.testing import CliRunner

from edgepack.cli import app

REPOSITORY = Path(__file__).parents[2]
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


@contextlib.contextmanager
def own_folder():
    """The folder that a test works in, or an empty one in place of the repository's root.

    Tests of other processes write in the repository at the same time.
    """
    if Path.cwd() != REPOSITORY:
        yield Path.cwd()
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        yield Path(folder)


def fails(*arguments):
    """The error and hint of a command that must fail with two lines, and its exit code."""
    with own_folder() as folder:
        before = set(folder.rglob("*"))
        result = run(*arguments)
        left = set(folder.rglob("*")) - before
    error, hint, *rest = result.stderr.splitlines()
    assert result.stdout == ""
    assert not rest
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert not left, "something was left behind"
    return error, hint, result.exit_code


def write(path, **changes):
    """RECIPE with sections changed key by key."""
    recipe = dict(RECIPE)
    for section, change in changes.items():
        both = isinstance(change, dict) and isinstance(recipe.get(section), dict)
        recipe[section] = recipe[section] | change if both else change
    path.write_text(yaml.safe_dump(recipe))
    return path
