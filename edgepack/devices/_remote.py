"""What all machines behind a shell have in common: files by content hash, runs that end with the
connection, facts.

Everything is a line for a POSIX shell there, with coreutils, busybox or toybox. What a line prints
ends with a mark and its exit code: without them the connection was lost. A line that must not
outlive the connection reads its input until that ends.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shlex
import subprocess
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

from edgepack.core.disk import atomic, sha256
from edgepack.core.untrusted import whole_number
from edgepack.devices import _facts, _scripts
from edgepack.devices.base import Device, Output, check_exists, files_of, out_of_time
from edgepack.errors import EdgepackError

MARK = b"\nedgepack:"
PATIENCE = 60.0
"""Seconds that a line may take which does no work of its own."""
SLOWEST = 200_000
"""Bytes per second below which a transfer is given up."""
GRACE = 10.0
"""Seconds in which a line ends after it was told to."""
MARGIN = 1 << 20
"""Bytes that stay free beside what is pushed."""


class Reply(NamedTuple):
    """What came of a line."""

    stdout: bytes
    stderr: str
    """Its last line, which says why something failed."""
    code: int


class Remote(Device):
    """A machine behind a command that takes one more word, a line for a shell there."""

    root: ClassVar[str]
    """Where pushed files stay, as a word of the shell there."""
    install: ClassVar[str]
    """How one gets the client."""

    def __init__(self, address: str = "") -> None:
        super().__init__(address)
        self.exits = ExitStack()
        """What `close` calls, the last first."""

    def close(self) -> None:
        """See `Device`."""
        self.exits.close()

    @abstractmethod
    def client(self) -> list[str]:
        """The command here that runs the line there."""

    @abstractmethod
    def line(self, script: str) -> str:
        """The word that makes `client` run a script in a POSIX shell."""

    @abstractmethod
    def lost(self, said: str) -> EdgepackError:
        """The error for a line that did not come to its end; `said` is what the client said."""

    # ------------------------------------------------------------------ files

    def push(self, path: Path) -> str:
        """See `Device`. Files lie in a folder that is called by the digest of names and bytes; each
        gets its name when its digest is right."""
        check_exists(path)
        files = files_of(path)
        sums = {name: sha256(file) for name, file in files.items()}
        key = hashlib.sha256(repr(sorted(sums.items())).encode()).hexdigest()[:16]
        folder = f"{self._folder}/{key}"
        missing = self._missing(folder, sums, sum(file.stat().st_size for file in files.values()))
        self._check_space(sum(files[name].stat().st_size for name in missing))
        for name in missing:
            self._send(files[name], f"{folder}/{name}", sums[name])
        return f"{folder}/{path.name}"

    def _missing(self, folder: str, sums: dict[str, str], size: int) -> list[str]:
        """The names of files that are not there with the right bytes."""
        places = " ".join(shlex.quote(f"{folder}/{name}") for name in sums)
        script = _scripts.DIGESTS.format(places=places)
        listed = self._whole(script, PATIENCE + size / SLOWEST).split()
        return [
            name
            for (name, digest), there in zip(sums.items(), listed, strict=True)
            if digest != there
        ]

    def _check_space(self, size: int) -> None:
        if not size:
            return
        free = self._free()
        if free is not None and free < size + MARGIN:
            raise self._full(f"{size >> 20} MiB are to be pushed, {max(free, 0) >> 20} are free")

    def _free(self) -> int | None:
        """Bytes that are free where files go; None where ``df`` cannot tell."""
        words = self._whole(f"df -kP {shlex.quote(self._folder)} | tail -n 1").split()
        free = whole_number(words[3]) if len(words) > 3 else None
        return None if free is None else free << 10

    def _full(self, why: str) -> EdgepackError:
        return EdgepackError(
            f"{self}: no space left in {self._folder} ({why})",
            hint=f"free some, or: edgepack bench --device {self} --clear",
        )

    def _send(self, file: Path, place: str, digest: str) -> None:
        mode = "755" if os.access(file, os.X_OK) else "644"
        script = _scripts.SEND.format(place=shlex.quote(place), digest=digest, mode=mode)
        patience = PATIENCE + file.stat().st_size / SLOWEST
        with file.open("rb") as content:
            reply = self._call(script, content, patience)
        if "No space left" in reply.stderr:
            raise self._full(reply.stderr)
        if reply.code:
            said = reply.stderr or "it arrived damaged"
            raise EdgepackError(f"{self}: {file.name} was not pushed ({said})", hint="try again")

    def pull(self, place: str, path: Path) -> None:
        """See `Device`. What came is compared with the digest there."""
        there = shlex.quote(place)
        reply = self._call(f"[ -f {there} ] && sha256sum <{there} && wc -c <{there}")
        if reply.code:
            raise EdgepackError(f"{self}: {place}: {reply.stderr or 'no such file'}")
        digest, _, size = reply.stdout.decode().split()
        with atomic(path) as temporary:
            with temporary.open("wb") as out:
                command = [*self.client(), self.line(f"cat {there}")]
                done = self._start(command, subprocess.DEVNULL, out)
                _, stderr = self._finish(done, PATIENCE + int(size) / SLOWEST)
            if sha256(temporary) != digest:
                raise self.lost(_last_line(stderr))

    def clear(self) -> int:
        """See `Device`."""
        size = self._whole(_scripts.CLEAR.format(folder=shlex.quote(self._folder)))
        self.close()
        return int(size) << 10

    # ------------------------------------------------------------------ runs

    def run(self, command: Sequence[str], timeout: float) -> Output:
        """See `Device`. The command has a folder of its own, which is removed after it. It is
        killed when the time is over, and also when the connection ends. Time is that of the device,
        in hundredths of seconds, peak memory that of the command alone, asked for five times a
        second."""
        scratch = shlex.quote(f"{self._folder}/scratch/{secrets.token_hex(8)}")
        script = _scripts.RUN.format(scratch=scratch, words=shlex.join(command))
        source, stop = (
            os.fdopen(end, mode) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True)
        )
        with source, stop:
            process = self._start([*self.client(), self.line(_marked(script))], source)
            reply = self._reply(*self._run_until(process, stop, command, timeout))
        if reply.code in _scripts.NOT_STARTED:
            raise self._not_started(command[0], _scripts.NOT_STARTED[reply.code])
        if reply.code:
            said = reply.stderr or "no scratch folder can be made"
            raise EdgepackError(f"{self}: {command[0]} was not run ({said})", hint="try again")
        return self._output(command[0], reply.stdout)

    def _run_until(
        self,
        process: subprocess.Popen[bytes],
        stop: IO[bytes],
        command: Sequence[str],
        timeout: float,
    ) -> tuple[bytes, bytes]:
        """What a run prints. However this ends, so does what runs there: it reads until `stop` is
        closed."""
        try:
            return process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise out_of_time(str(self), command, timeout) from None
        finally:
            with suppress(OSError):
                stop.close()
            _end(process)

    def _output(self, program: str, printed: bytes) -> Output:
        header, _, rest = printed.partition(b"\n")
        code, begin, end, peak, size = header.decode().split()
        stdout, stderr = (
            data.decode(errors="replace") for data in (rest[: int(size)], rest[int(size) :])
        )
        exit_code = int(code)
        if exit_code in (126, 127):  # the shell's words for: not allowed, not found
            raise self._not_started(program, _last_line(stderr.encode()))
        seconds = (int(end.replace(".", "")) - int(begin.replace(".", ""))) / 100
        return Output(
            stdout,
            stderr,
            128 - exit_code if exit_code > 128 else exit_code,
            seconds,
            int(peak) << 10 if peak != "-" else None,
        )

    def _not_started(self, program: str, why: str) -> EdgepackError:
        hint = "name a program that is installed there, or the place of one"
        if program.startswith(self._folder):
            hint = "the folder may be mounted noexec, or the program made for another CPU"
        return EdgepackError(f"{self}: {program} cannot be started ({why})", hint=hint)

    # ------------------------------------------------------------------ facts

    def describe(self) -> dict[str, Any]:
        return _facts.describe(self._whole(_facts.DESCRIBE))

    def condition(self) -> dict[str, Any]:
        return _facts.condition(self._whole(_facts.CONDITION))

    # ------------------------------------------------------------------ the connection

    @cached_property
    def _folder(self) -> str:
        """Where pushed files stay; made when it is first asked for, and cleared of what killed
        processes left."""
        reply = self._call(_scripts.OPEN.format(root=self.root))
        if reply.code:
            raise EdgepackError(
                f"{self}: {self.root} cannot be made ({reply.stderr})",
                hint="make it by hand, or free some space",
            )
        self.exits.callback(self.__dict__.pop, "_folder")
        return reply.stdout.decode().strip()

    def _whole(self, script: str, patience: float = PATIENCE) -> str:
        """What a script prints that must not fail."""
        reply = self._call(script, patience=patience)
        if reply.code:
            raise EdgepackError(f"{self}: {reply.stderr or 'a command failed there'}")
        return reply.stdout.decode(errors="replace")

    def _call(
        self, script: str, source: IO[bytes] | int = subprocess.DEVNULL, patience: float = PATIENCE
    ) -> Reply:
        """Run a script there, with a file as its input, or none."""
        process = self._start([*self.client(), self.line(_marked(script))], source)
        return self._reply(*self._finish(process, patience))

    def _start(
        self,
        command: list[str],
        source: IO[bytes] | int,
        out: IO[bytes] | int = subprocess.PIPE,
    ) -> subprocess.Popen[bytes]:
        """Start the client. In a session of its own, so that Ctrl-C is this process's alone."""
        try:
            return subprocess.Popen(
                command, stdin=source, stdout=out, stderr=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise EdgepackError(
                f"{self.name}: {command[0]} cannot be started ({error.strerror})",
                hint=self.install,
            ) from None

    def _finish(self, process: subprocess.Popen[bytes], patience: float) -> tuple[bytes, bytes]:
        """What the client prints until it ends; after `patience` seconds it is killed."""
        with process:
            try:
                return process.communicate(timeout=patience)
            except subprocess.TimeoutExpired:
                raise self.lost(f"no answer for {patience:g} s") from None
            finally:
                process.kill()

    def _reply(self, stdout: bytes, stderr: bytes) -> Reply:
        printed, mark, code = stdout.rpartition(MARK)
        number = whole_number(code.decode(errors="replace"))
        if not mark or number is None:
            raise self.lost(_last_line(stderr or stdout))
        return Reply(printed, _last_line(stderr), number)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of what was told to end."""
    with process:
        try:
            if process.poll() is None:
                process.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired:
            process.kill()


def _marked(script: str) -> str:
    return f"(\n{script}\n)\nprintf '\\nedgepack:%d' $?"


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
