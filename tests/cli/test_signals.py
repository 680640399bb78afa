"""Signals end a command in good order, wherever they meet it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import sys, time, typer
from edgepack.cli._app import Commands, heed_signals

app = typer.Typer(cls=Commands)

class Slow:
    def __del__(self):  # what is raised here goes nowhere
        print("begun", flush=True)
        time.sleep(1)

@app.command()
def first():
    Slow()
    time.sleep(30)

@app.command()
def second():
    try:
        print("begun", flush=True)
        time.sleep(30)
    finally:
        time.sleep(0.5)
        print("cleaned", flush=True)

heed_signals()
app()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
@pytest.mark.parametrize("command", ["first", "second"])
def test_a_signal_ends_a_command_even_where_python_drops_exceptions(tmp_path, name, command):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, str(path), command], stdout=pipe, stderr=pipe, text=True, env=environment
    ) as process:
        assert process.stdout.readline() == "begun\n"
        number = signal.Signals[name]
        process.send_signal(number)
        if command == "second":  # asked twice, it still cleans up
            time.sleep(0.1)
            if name != "SIGINT":
                process.send_signal(number)
        out, error = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert "Traceback" not in error
    assert ("interrupted" if name == "SIGINT" else f"stopped by {name}") in error
    assert ("cleaned" in out) is (command == "second")
