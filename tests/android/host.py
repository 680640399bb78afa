"""The app's host as a process: its plain Java on the machine's own JVM, with programs for here."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgepack.native.build import PROGRAMS, Program
from tests.support.native import Event, host_program

PROJECT = Path(__file__).parents[2] / "android_demo"
JAVA = PROJECT / "app/src/main/java/org/edgepack"
LAST = {
    *("hello", "models", "imported", "cancelled", "removed", "shared", "jobs", "forgotten"),
    *("device", "inspected", "loaded", "adapters", "rendered", "done", "planned", "benched"),
    *("failed", "ended"),
}


def compiled(folder: Path) -> Path:
    """The host's classes and the driver's; the test is skipped where there is no compiler."""
    if not shutil.which("javac"):
        pytest.skip("needs javac")
    driver = Path(__file__).parent / "java/org/edgepack/host"
    sources = [*(JAVA / "host").glob("*.java"), *driver.glob("*.java")]
    options = ["-source", "8", "-target", "8", "-Xlint:all", "-Xlint:-options", "-Werror"]
    subprocess.run(["javac", *options, "-d", folder, *sources], check=True)
    return folder


def programs(folder: Path, names: tuple[Program, ...] = PROGRAMS) -> Path:
    """Programs for this machine, under the names that they have in the app."""
    folder.mkdir(exist_ok=True)
    for name in names:
        link = folder / f"libedgepack-{name}.so"
        if not link.exists():
            link.symlink_to(host_program(name))
    return folder


class Host:
    """A page's view of the host."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.told: list[dict[str, Any]] = []
        """What Android would show, in order."""
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._kept: list[Event] = []
        self._number = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            if "told" in event:
                self.told.append(event)
            if event.get("told") != "training":
                self._events.put(event)
        self._events.put(None)

    def act(self, what: str, value: Any) -> None:
        """Something that happens to the app, see `Desktop.act`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({what: value}) + "\n")
        self.process.stdin.flush()

    def post(self, to: str, do: str, **fields: Any) -> str:
        """A page's request; its id."""
        self._number += 1
        name = f"p{self._number}"
        self.act("post", json.dumps({"id": name, "to": to, "do": do, **fields}))
        return name

    def next(self, name: str | None, timeout: float = 60.0) -> Event:
        """The next event of a request; those of others stay for later."""
        for event in self._kept:
            if event.get("id") == name and "told" not in event:
                self._kept.remove(event)
                return event
        while True:
            event = self._take(timeout)
            if event.get("id") == name and "told" not in event:
                return event
            self._kept.append(event)

    def _take(self, timeout: float) -> Event:
        event = self._events.get(timeout=timeout)
        assert event is not None, f"the host ended with {self.process.wait(5)}"
        return event

    def until(self, name: str, *kinds: str, timeout: float = 120.0) -> list[Event]:
        """Events of a request up to one of these kinds."""
        found = [self.next(name, timeout)]
        while found[-1]["event"] not in kinds:
            found.append(self.next(name, timeout))
        return found

    def ask(self, to: str, do: str, **fields: Any) -> Event:
        """A request's last event."""
        name = self.post(to, do, **fields)
        last = LAST - {"planned"} if do == "train" else LAST
        return self.until(name, *last)[-1]

    def json(self, text: str) -> dict[str, str]:
        """What `Json.java` makes of a text."""
        self.act("json", text)
        while "told" not in (event := self._take(30)):
            self._kept.append(event)
        found: dict[str, str] = event["value"]
        return found

    def import_files(self, *paths: Path, kind: str = "model", **fields: Any) -> Event:
        """Let the person choose files; the import's last event."""
        self.act("choose", [str(path) for path in paths])
        return self.ask("app", "import", kind=kind, **fields)


@contextmanager
def running(classes: Path, programs: Path, files: Path, cpuinfo: Path) -> Iterator[Host]:
    """Start the host; it is killed afterwards, with its workers, if it has not ended."""
    command = ["java", "-Xmx256m", "-Dfile.encoding=UTF-8", "-cp", classes]
    with subprocess.Popen(
        [*command, "org.edgepack.host.Desktop", programs, cpuinfo, files],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        try:
            yield Host(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
