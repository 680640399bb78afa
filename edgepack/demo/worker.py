"""A running program: requests go in, events come out, line by line (`docs/workers.md`)."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from edgepack.errors import EdgepackError

Json = dict[str, Any]
Hear = Callable[[Json], None]
LAST = {
    "inspect": "inspected",
    "load": "loaded",
    "adapters": "adapters",
    "chat": "ended",
    "render": "rendered",
    "write": "written",
    "plan": "planned",
    "train": "ended",
    "cancel": "done",
}
"""The event that ends a request, beside `failed`."""
GONE = "the program ended by itself"
LONGEST = 4 << 20
"""Bytes of a line that a program reads."""
LAST_WORDS = 5.0
"""Seconds that a program has to end when its input has ended."""


class _Open(NamedTuple):
    """A request that has not ended."""

    last: str
    hear: Hear
    process: subprocess.Popen[bytes]


class Worker:
    """Starts its program when it is first asked, and again after it has ended.

    Who asks gives a function that hears all events of the request; it is called on a thread of the
    worker's. If the program ends, open requests hear of `failed` with `ended`.
    """

    def __init__(self, name: str, program: Path) -> None:
        self.name, self._program = name, program
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._open: dict[str, _Open] = {}

    @property
    def pid(self) -> int | None:
        """Of the process that runs, if one does."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def ask(self, request: Json, hear: Hear) -> None:
        """Send a request; `id` and `do` are in it."""
        line = json.dumps(request, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        if len(line) > LONGEST:  # the program could not tell whose line it was
            raise EdgepackError("this is more text than a request can have", hint="send less text")
        with self._lock:
            process = self._running()
            self._open[request["id"]] = _Open(LAST[request["do"]], hear, process)
        assert process.stdin is not None
        with suppress(OSError, ValueError):  # it has ended; whoever reads its events says so
            process.stdin.write(line)
            process.stdin.flush()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [str(self._program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the relay, which ends its workers
            )
            reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
            reader.start()
        return self._process

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue  # half a line of a program that was killed
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                self._give(event)  # anything else would end this thread, and all would wait
        process.wait()
        process.stdout.close()
        with self._lock:
            left = {name: one for name, one in self._open.items() if one.process is process}
            for name in left:
                del self._open[name]
        for name, one in left.items():
            one.hear({"id": name, "event": "failed", "message": GONE, "ended": True})

    def _give(self, event: Json) -> None:
        name = event.get("id")
        with self._lock:
            entry = self._open.get(name) if isinstance(name, str) else None
            if entry is None or not isinstance(name, str):
                return  # `ready`, or of a request that nobody waits for
            if event["event"] in (entry.last, "failed"):
                del self._open[name]
        entry.hear(event)

    def close(self) -> None:
        """End the program: by the end of its input, or by force."""
        with self._lock:
            process, self._process = self._process, None
            self._open.clear()
        if process is None:
            return
        with suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        try:
            process.wait(LAST_WORDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
