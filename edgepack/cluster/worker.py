"""An item's work on a machine of the cluster, in a folder that is removed afterwards."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from edgepack.checkpoint.base import AnotherModelError
from edgepack.cluster.parcel import (
    Bytes,
    Parcel,
    Seen,
    below,
    filled,
    has_models,
    mapped,
    moved,
    write_pieces,
)
from edgepack.cluster.sent import SentWeight
from edgepack.core.disk import root
from edgepack.core.os_errors import from_os_error
from edgepack.errors import EdgepackError

APART = "EDGEPACK_NOTHING_SHARED"
"""Set on a machine, it says that everything has to be sent there."""
LOCK = "in-use"
Reply = tuple[dict[str, Any], list[Bytes | None]]
"""What to say of the work, and the files that were made (None: there was no need of one)."""


def do(
    job: str,
    cores: int,
    parcel: Parcel,
    files: Sequence[Sequence[Any]] | None,
    weights: Any | None,
) -> Reply:
    """Do the work of a parcel. `files` are the parts that it reads, each in pieces, `weights` those
    of its model; Ray fetches them if they are used. Without them the reply may be that they are
    needed."""
    start, host = time.process_time(), socket.gethostname()
    about: dict[str, Any] = {"host": host}
    try:
        opened = _open(parcel, job)
        copies = apart() or not all(seen.is_here for seen in parcel.seen)
        needs = [
            *(["model"] if opened is None and weights is None else []),
            *(["files"] if copies and files is None and parcel.seen else []),
        ]
        if needs:
            return about | {"needs": needs}, []
        if opened is None:
            assert parcel.with_sent is not None
            work, blank = pickle.loads(parcel.with_sent)
            item = filled(blank, _fetched(weights))
        else:
            work, item = opened
        with _folder(job) as folder:
            if copies:
                _unpack(parcel.seen, files or (), folder, job)
            else:
                for seen in parcel.seen:
                    _link(below(folder, seen.part.path), seen.part.path)
            made = moved(item, partial(below, folder))
            outputs = [below(folder, path) for path in parcel.writes]
            for path in outputs:
                path.parent.mkdir(parents=True, exist_ok=True)
            torch.set_num_threads(cores)
            with torch.no_grad():
                work(made)
            data = [mapped(path) if path.exists() else None for path in outputs]
    except AnotherModelError as error:
        return about | {"another": dict(error.digests), "error": error}, []
    except EdgepackError as error:
        return about | {"error": error}, []
    except Exception as error:
        known = from_os_error(error)
        if known is None:
            raise
        known.message = f"cluster: {host}: {known.message}"
        return about | {"error": known}, []
    seconds = time.process_time() - start
    return about | {"seconds": seconds, "sent_model": opened is None, "sent_files": copies}, data


def apart() -> bool:
    """Whether this machine is to take nothing from a shared file system."""
    return bool(os.environ.get(APART))


def _open(parcel: Parcel, job: str) -> tuple[Any, Any] | None:
    """The work and its item, None if the item's model is not on this machine. The first process
    that opens a model hashes it, while the others wait for the digest."""
    if parcel.with_sent is not None and apart():
        return None
    with _first_come(job):
        try:
            found: tuple[Any, Any] = pickle.loads(parcel.with_place)
        except AnotherModelError:
            raise
        except (EdgepackError, OSError):
            return None
    return None if apart() and has_models(found[1]) else found


@contextmanager
def _first_come(job: str) -> Iterator[None]:
    """One process of this machine after the other."""
    with (_store(job) / "turn").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetched(weights: Any) -> Mapping[str, SentWeight]:
    import ray

    found: Mapping[str, SentWeight] = ray.get(weights[0])
    return found


def _unpack(seen: Sequence[Seen], files: Sequence[Sequence[Any]], folder: Path, job: str) -> None:
    """Write what was sent to where the item looks for it. What many items read is written once for
    the job on this machine."""
    import ray

    names = pickle.dumps([one for one in seen if one.part.kept])
    kept = _store(job) / hashlib.sha256(names).hexdigest()[:16]
    for one, refs in zip(seen, files, strict=True):
        path, place = one.part.path, below(folder, one.part.path)
        if not one.part.kept:
            write_pieces(place, map(ray.get, refs))
            continue
        with _first_come(job):
            if not below(kept, path).exists():
                write_pieces(below(kept, path), map(ray.get, refs))
        _link(place, below(kept, path))


def _link(place: Path, path: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(path)


@contextmanager
def _folder(job: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=_store(job)))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def forget(job: str) -> None:
    """Remove what a job has left on this machine; its processes end soon."""
    shutil.rmtree(_store(job), ignore_errors=True)


@cache
def _store(job: str) -> Path:
    """The folder of a job on this machine. It is locked as long as a process of the job lives;
    those of other jobs that are not are removed."""
    stores = root() / "cluster"
    mine = stores / job
    while not (mine / LOCK).exists():  # or another job found it unlocked, and removed it
        mine.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            _lock(mine, fcntl.LOCK_SH)
    for other in stores.iterdir():
        if other != mine:
            with suppress(OSError):
                os.close(_lock(other, fcntl.LOCK_EX | fcntl.LOCK_NB))
                shutil.rmtree(other, ignore_errors=True)
    return mine


def _lock(folder: Path, how: int) -> int:
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, how)
    except OSError:
        os.close(file)
        raise
    return file
