"""sha256 of files, remembered for large ones as long as size and modification time stay."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import platformdirs

LARGE = 16 << 20
"""Bytes from which a digest is worth remembering (hashing 16 MB takes about 10 ms)."""


def sha256(path: Path) -> str:
    """Hex digest of a file's contents."""
    stat = path.stat()
    if stat.st_size < LARGE:
        return _hash(path)
    known = _load()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    if key not in known:
        known[key] = _hash(path)
        _save(known)
    return known[key]


def combine(digests: dict[str, str]) -> str:
    """One digest of several named ones."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _store() -> Path:
    return Path(platformdirs.user_cache_dir("edgepack")) / "digests.json"


def _load() -> dict[str, str]:
    try:
        known = json.loads(_store().read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _save(known: dict[str, str]) -> None:
    """Best effort: a cache that cannot be written costs time, not correctness."""
    partial = _store().with_suffix(f".{os.getpid()}.partial")
    with suppress(OSError):
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(known))
        partial.replace(_store())
