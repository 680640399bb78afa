"""edgepack's programs in C++, as processes: those for this machine are compiled for the tests."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgepack.errors import EdgepackError
from edgepack.native import source
from edgepack.native.build import Program, make_program
from edgepack.native.toolchains import HOST, Host
from tests.support.phone import TOOLS

Event = dict[str, Any]
CACHE = Path(sys.prefix) / "native"
"""Compiled once for all runs of the tests: two minutes."""
LAST = {
    *("inspected", "loaded", "adapters", "ended", "rendered", "written", "done", "failed"),
    *("planned", "gradient"),
}
"""Events that end a request; `planned` does where `plan` was asked for."""


def host_program(program: Program) -> Path:
    """A program for this machine; the test is skipped where nothing can be compiled."""
    if not Host.is_usable():
        pytest.skip("needs a C++ compiler and llama-cpp-python")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", str(CACHE))
        try:
            source.llama_cpp(lambda _: None)
        except EdgepackError as error:
            pytest.skip(f"needs llama.cpp's source: {error}")
        return make_program(program, HOST)


def slow_proof() -> None:
    """Skip a test that takes minutes, unless all are run."""
    if not TOOLS:
        pytest.skip("takes minutes: make test-device")


class Worker:
    """A running program: requests go in, events come out."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._number = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._events.put(json.loads(line))
        self._events.put(None)

    def write(self, line: str) -> None:
        """Any text, with the end of a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def next(self, timeout: float = 60.0) -> Event:
        """The next event; fails if the process has ended."""
        event = self._events.get(timeout=timeout)
        assert event is not None, f"the worker ended with {self.process.wait(5)}"
        return event

    def post(self, do: str, **fields: Any) -> str:
        """Send a request and return its id."""
        self._number += 1
        name = f"r{self._number}"
        self.write(json.dumps({"id": name, "do": do, **fields}))
        return name

    def ask(self, do: str, timeout: float = 60.0, **fields: Any) -> list[Event]:
        """Send a request and wait for its last event; the events of it."""
        name, found = self.post(do, **fields), list[Event]()
        while not found or found[-1]["event"] not in LAST or self._goes_on(do, found[-1]):
            event = self.next(timeout)
            if event["id"] == name:
                found.append(event)
        return found

    @staticmethod
    def _goes_on(do: str, event: Event) -> bool:
        return do == "train" and event["event"] == "planned"

    def close(self) -> int:
        """End its input, and return its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(30)


@contextmanager
def running(command: Sequence[str | Path]) -> Iterator[Worker]:
    """Start a program, and kill it afterwards if it still runs."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        try:
            yield Worker(process)
        finally:
            process.kill()
