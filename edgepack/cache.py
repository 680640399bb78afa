"""Content-addressed stage folders ``STAGE/KEY``, written as ``KEY.partial``, renamed when whole.

key = sha256(stage, version, options, keys of the inputs): the same work is never done twice, a
changed option never meets an old result, and a killed run finds its finished files in the partial
folder. Failures are never stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgepack.errors import EdgepackError


def root() -> Path:
    """Where stages are kept: ``$EDGEPACK_CACHE``, else the user's cache folder."""
    given = os.environ.get("EDGEPACK_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("edgepack"))


@dataclass(frozen=True)
class Stage:
    """One stage of one recipe: its folder's place follows from what goes in."""

    name: str
    version: int
    options: Mapping[str, Any]
    inputs: tuple[str, ...]

    @property
    def key(self) -> str:
        """Hex digest of everything that determines the result."""
        content = [self.name, self.version, dict(self.options), list(self.inputs)]
        text = json.dumps(content, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def folder(self) -> Path:
        """Where the finished stage stands."""
        return root() / self.name / self.key

    @property
    def partial(self) -> Path:
        """Where an unfinished one is being written."""
        return self.folder.with_name(self.key + ".partial")

    @property
    def is_done(self) -> bool:
        """Whether the result is there."""
        return self.folder.is_dir()

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """The partial folder, renamed to the finished one if the body does not raise."""
        self.partial.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder.with_name(self.key + ".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise EdgepackError(
                f"another edgepack is working on the same {self.name} stage",
                hint="wait for it to end; both would write the same files",
            ) from None
        with lock:
            yield self.partial
            if self.is_done:  # another run was through first: the same key, the same content
                shutil.rmtree(self.partial)
            else:
                self.partial.rename(self.folder)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the body is through."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able description as one safetensors file, atomically."""
    with atomic(path) as temporary:
        save_file(dict(tensors), temporary, metadata={"edgepack": json.dumps(about)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of `save_tensors`."""
    with safe_open(path, framework="pt") as file:
        about: dict[str, Any] = json.loads(file.metadata()["edgepack"])
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118


@contextmanager
def new_folder(
    path: Path, *, force: bool, make_error: Callable[[str], EdgepackError]
) -> Iterator[Path]:
    """An output folder written beside `path` and renamed into place; nothing is left on failure."""
    if path.exists() and not force:
        raise make_error(f"{path}: already exists")
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
