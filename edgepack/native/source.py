"""llama.cpp's source, as the release of llama-cpp-python has it that edgepack is tested with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgepack.core.disk import lock_of, locked, root, sha256
from edgepack.errors import EdgepackError

ARCHIVE = "llama_cpp_python-0.3.36.tar.gz"
ARCHIVE_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
RELEASE = ARCHIVE.removesuffix(".tar.gz").rpartition("-")[2]
JINJA = ("common/jinja/*.cpp", "common/json.cpp", "common/unicode.cpp")
"""The engine of chat templates, and what it needs; not one of llama.cpp's libraries."""
INCLUDES = ("include", "ggml/include", "common", "vendor")
Say = Callable[[str], None]


def cache() -> Path:
    """Where everything is that is compiled or compiled from."""
    return (root() / "workers").resolve()  # other programs run elsewhere


def llama_cpp(say: Say) -> Path:
    """llama.cpp's folder, unpacked; its archive is downloaded by pip, and compared."""
    folder = cache() / f"source-{ARCHIVE_SHA256[:16]}"
    if not folder.is_dir():
        with alone("source", say):
            if not folder.is_dir():  # another process may have done it meanwhile
                _unpack(folder, say)
    return folder


def _unpack(folder: Path, say: Say) -> None:
    archive = folder.parent / ARCHIVE
    if not archive.is_file():
        say(f"downloading {ARCHIVE}")
        release = f"llama-cpp-python=={RELEASE}"
        options = ("--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(folder.parent))
        folder.parent.mkdir(parents=True, exist_ok=True)
        run([sys.executable, "-m", "pip", "download", "-q", *options, release], folder.parent)
    if sha256(archive) != ARCHIVE_SHA256:
        archive.unlink()
        raise EdgepackError(f"{ARCHIVE} has other bytes than it should have", hint="try again")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        start = f"{ARCHIVE.removesuffix('.tar.gz')}/vendor/llama.cpp/"
        members = [member for member in tar.getmembers() if member.name.startswith(start)]
        tar.extractall(partial, members, filter="data")
    (partial / start).rename(folder)
    shutil.rmtree(partial)
    archive.unlink()


@contextmanager
def alone(what: str, say: Say) -> Iterator[None]:
    """One process at a time makes something; another waits, and finds it made."""
    lock = lock_of(f"workers-{what}")
    with locked(lock) as mine:
        if mine:
            yield
            return
    say(f"waiting for another process, which makes the same ({what})")
    with locked(lock, wait=-1):
        yield


def run(command: Sequence[str], folder: Path, more: Mapping[str, str] | None = None) -> None:
    """Run a program that prints into a log in a folder; its failure is one line."""
    log = folder / "log.txt"
    environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(cache() / "zig")} | dict(more or {})
    with log.open("wb") as out:
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, check=False
        )
    if done.returncode:
        program = Path(command[0]).name
        raise EdgepackError(
            f"worker: {program} ended with {done.returncode}", hint=f"see why in {log}"
        )
