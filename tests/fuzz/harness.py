"""Runs spoiled inputs in forked workers and says what came of each.

A worker does many inputs, one after another, and reports before and after each, so that a hang or
a death by signal is known to be that of one input; the next worker goes on behind it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import multiprocessing
import os
import re
import resource
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil

OUTCOMES = ("ok", "refused", "no hint", "unclear", "traceback", "hang", "signal", "memory", "leak")
GOOD = ("ok", "refused")
LINE = 1000  # characters an error may have
CPU_SECONDS, WALL_SECONDS = 10.0, 90.0  # for one input
MEMORY = 4 << 30  # bytes on top of what the worker has when it starts
PER_WORKER = 400  # inputs, before what they leave in memory is dropped


@dataclass(frozen=True)
class Reader:
    """Something that reads: `spoil` writes the input of a number into a folder and names the files
    that it changed, `read` does with the folder what a user's command does. With `may_name_any`
    the input may name files anywhere: a recipe is the user's own."""

    name: str
    spoil: Callable[[Path, int], list[str]]
    read: Callable[[Path], None]
    may_name_any: bool = False


@dataclass
class Found:
    """What came of the inputs of one reader; `failures` are (number, outcome, detail), `words` the
    different errors that others were refused with. Few of those: the reader does not get far."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    words: Counter[str] = field(default_factory=Counter)

    def add(self, number: int, outcome: str, detail: str) -> None:
        """Count one."""
        self.counts[outcome] += 1
        if outcome == "refused":
            self.words[re.sub(r"\S*/|\W?'.*|\d+", "", detail)[:60]] += 1
        if outcome not in GOOD:
            self.failures.append((number, outcome, detail))


class Refused(Exception):  # noqa: N818
    """A command ended with an error of its own; its words are the argument."""


def command(*arguments: str) -> None:
    """Run edgepack's command line in this process; raises `Refused` for an error that it explained,
    and whatever else comes out of it."""
    main = _main()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments), prog_name="edgepack", standalone_mode=False)
    if code:
        raise Refused(err.getvalue(), code)


def _main() -> Any:
    """The click command, made once: it takes longer than most inputs."""
    if "main" not in _CACHE:
        import typer

        from edgepack.cli import app

        _CACHE["main"] = typer.main.get_command(app).main
    return _CACHE["main"]


_CACHE: dict[str, Any] = {}


def judged(read: Callable[[], None]) -> tuple[str, str]:
    """(outcome, detail) of one input."""
    from edgepack.core.os_errors import from_os_error
    from edgepack.errors import EdgepackError

    try:
        read()
    except Refused as refused:
        return _refusal(*refused.args)
    except EdgepackError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        return _refusal(f"error: {error.message}{hint}", error.exit_code)
    except BaseException as error:
        known = from_os_error(error) if isinstance(error, Exception) else None
        if known is not None:
            return "memory", known.message
        return "traceback", _place(error)
    return "ok", ""


def _refusal(said: str, code: int) -> tuple[str, str]:
    """An error as it should be: code 1 or 2, one line, a hint."""
    lines = said.rstrip("\n").split("\n")
    errors = [line for line in lines if line.startswith("error:")]
    hints = [line for line in lines if line.startswith("hint:")]
    if "out of memory" in said:
        return "memory", said[:200]
    if (
        code not in (1, 2)
        or len(errors) != 1
        or len(said) != len("\n".join([*errors, *hints])) + (said.endswith("\n"))
    ):
        return "unclear", f"exit {code}, {len(lines)} lines: {said[:200]!r}"
    if len(errors[0]) > LINE:
        return "unclear", f"{len(errors[0])} characters: {errors[0][:100]!r}"
    if len(hints) != 1:
        return "no hint", errors[0][:200]
    return "refused", errors[0][:200]


def _place(error: BaseException) -> str:
    """The kind of an exception and the last line of edgepack that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f"{os.sep}edgepack{os.sep}" in f.filename] or frames
    last = own[-1]
    name = last.filename.rpartition(f"edgepack{os.sep}")[2]
    said = str(error).split("\n")[0][:120]
    return f"{type(error).__name__} at {name}:{last.lineno} ({said})"


# ---------------------------------------------------------------------------- one worker


def _work(reader: Reader, numbers: range, template: Path, place: Path, talk: Connection) -> None:
    """In the fork: input after input; ("start", number) and ("done", number, outcome, detail)."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123
    faulthandler.disable()  # pytest's would tell of every death
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = psutil.Process().memory_info().vms + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sandbox = Sandbox(place, template)
    for number in numbers:
        try:
            changed = reader.spoil(sandbox.case, number)
        except Exception as error:  # a fault of these tests
            talk.send(("broken", number, "", "".join(traceback.format_exception(error))))
            os._exit(0)
        sandbox.begin()
        talk.send(("start", number, "", ""))
        outcome, detail = judged(lambda: reader.read(sandbox.case))
        leak = sandbox.leak(reading=not reader.may_name_any)
        if leak:
            outcome, detail = "leak", leak
        if outcome not in GOOD:
            sandbox.keep(changed, number)
        talk.send(("done", number, outcome, detail))
        sandbox.restore(changed)
    os._exit(0)


class Sandbox:
    """A folder with the case, beside it what must be neither read nor changed."""

    def __init__(self, place: Path, template: Path) -> None:
        self.place, self.template = place, template
        shutil.rmtree(place, ignore_errors=True)
        self.case, self.outside = place / "case", place / "outside"
        shutil.copytree(template, self.case)
        shutil.copytree(template / "m", self.outside)
        os.environ["HOME"] = os.environ["XDG_CACHE_HOME"] = str(place / "home")
        os.environ["EDGEPACK_CACHE"] = str(place / "cache")
        os.chdir(self.case)

    def begin(self) -> None:
        """Remember what lies around, and when it was last read."""
        for path in self.outside.iterdir():
            os.utime(path, (0, path.stat().st_mtime))
        self.before = self._around()

    def leak(self, *, reading: bool = True) -> str:
        """What was written or removed that should not have been; with `reading`, read as well."""
        after = self._around()
        if after != self.before:
            return "changed: " + ", ".join(sorted(after ^ self.before))[:200]
        read = [p.name for p in self.outside.iterdir() if reading and p.stat().st_atime > 0]
        return "read outside the folder: " + ", ".join(read) if read else ""

    def _around(self) -> set[str]:
        here = {str(p.relative_to(self.place)) for p in (self.place, self.case, self.outside)}
        for folder in (self.place, self.case, self.outside, self.case / "m"):
            here |= {str(p.relative_to(self.place)) for p in folder.iterdir()}
        return here - {"home", "cache"}

    def keep(self, changed: list[str], number: int) -> None:
        """Put the files of a failing input aside."""
        kept = self.place.parent / "kept" / str(number)
        for name in changed:
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.case / name, kept / name)

    def restore(self, changed: list[str]) -> None:
        """The whole case again."""
        for name in changed:
            source, target = self.template / name, self.case / name
            if source.exists():
                shutil.copy(source, target)
            else:
                target.unlink(missing_ok=True)


# ---------------------------------------------------------------------------- all of them


@dataclass
class _Worker:
    """A running fork, and what it is at."""

    numbers: range
    process: Any
    listen: Connection
    place: Path
    number: int = -1
    since: float = 0.0
    cpu: float = 0.0

    def hangs(self) -> bool:
        """Whether the input at hand has had its time."""
        if self.number < 0:
            return False
        with contextlib.suppress(psutil.Error):
            used = psutil.Process(self.process.pid).cpu_times()
            if used.user + used.system - self.cpu > CPU_SECONDS:
                return True
        return time.monotonic() - self.since > WALL_SECONDS

    def started(self, number: int) -> None:
        """It is at an input."""
        self.number, self.since = number, time.monotonic()
        with contextlib.suppress(psutil.Error):
            used = psutil.Process(self.process.pid).cpu_times()
            self.cpu = used.user + used.system


def run(reader: Reader, numbers: range, template: Path, place: Path, jobs: int = 1) -> Found:
    """All `numbers` of a reader, in `jobs` workers at once, in folders below `place`."""
    found, fork = Found(), multiprocessing.get_context("fork")
    waiting = list(_parts(numbers))
    running: list[_Worker] = []
    count = 0
    while waiting or running:
        while waiting and len(running) < jobs:
            part, count = waiting.pop(0), count + 1
            listen, talk = fork.Pipe(duplex=False)
            folder = place / f"worker-{count}"
            arguments = (reader, part, template, folder, talk)
            process = fork.Process(target=_work, args=arguments, daemon=True)
            process.start()
            talk.close()
            running.append(_Worker(part, process, listen, folder))
        ready = wait([worker.listen for worker in running], timeout=0.5)
        for worker in list(running):
            over = _listen(worker, found) if worker.listen in ready else False
            if not over and worker.hangs():
                worker.process.kill()
                found.add(worker.number, "hang", f"after {CPU_SECONDS:g} s")
                over = True
                _keep(reader, worker, template)
                worker.numbers = range(worker.number + 1, worker.numbers.stop)
            if over:
                worker.process.join()
                if worker.number < 0 and worker.process.exitcode not in (0, -9):
                    raise RuntimeError(f"a worker died of itself ({worker.process.exitcode})")
                if worker.number >= 0 and worker.process.exitcode not in (0, -9):
                    found.add(worker.number, "signal", f"exit {worker.process.exitcode}")
                    _keep(reader, worker, template)
                    worker.numbers = range(worker.number + 1, worker.numbers.stop)
                elif worker.process.exitcode == 0:
                    worker.numbers = range(0)
                if worker.numbers:
                    waiting.insert(0, worker.numbers)
                running.remove(worker)
                shutil.rmtree(worker.place, ignore_errors=True)
    return found


def _keep(reader: Reader, worker: _Worker, template: Path) -> None:
    """Write the input of a worker that is gone once more, aside."""
    again = worker.place.parent / "again"
    shutil.rmtree(again, ignore_errors=True)
    shutil.copytree(template, again)
    for name in reader.spoil(again, worker.number):
        kept = worker.place.parent / "kept" / str(worker.number) / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(again / name, kept)
    shutil.rmtree(again)


def _parts(numbers: range) -> Iterator[range]:
    for start in range(numbers.start, numbers.stop, PER_WORKER):
        yield range(start, min(start + PER_WORKER, numbers.stop))


def _listen(worker: _Worker, found: Found) -> bool:
    """Take what a worker has to say; whether it is gone."""
    try:
        while worker.listen.poll():
            what, number, outcome, detail = worker.listen.recv()
            if what == "broken":
                raise RuntimeError(f"input {number} could not be made: {detail}")
            if what == "start":
                worker.started(number)
            else:
                worker.number = -1
                found.add(number, outcome, detail)
                worker.numbers = range(number + 1, worker.numbers.stop)
    except EOFError:
        return True
    return False
