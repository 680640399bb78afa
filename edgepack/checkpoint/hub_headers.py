"""A model on the Hub of which only headers are fetched: names and shapes of tensors, tokenizer.

The headers of its safetensors files are put into files of the same length with nothing behind them
(holes, which take no space), so that everything that reads folders reads this one too. The values
of its weights are zeros: it is for planning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from edgepack.checkpoint import hub, open_local, shards
from edgepack.checkpoint.base import Checkpoint
from edgepack.checkpoint.config import Index
from edgepack.checkpoint.folder import FILES, FolderCheckpoint
from edgepack.core.untrusted import read_json, shorten, validate
from edgepack.errors import CheckpointError

WEIGHTS = "model*.safetensors"
LENGTH = 8
"""Bytes at the beginning of a safetensors file that say how long its header is."""
MAX_HEADER = 100_000_000
"""As the library allows it."""
MAX_FILE = 1 << 50


@contextmanager
def open_headers(model: str) -> Iterator[Checkpoint]:
    """Open a model by name, as `open_checkpoint` does; of a model of the Hub that is not in the
    cache, only headers are fetched, and it can be read only within the context."""
    found = open_local(model)
    if found is not None:
        yield found
        return
    cached = hub.cached(model)
    if cached is not None:
        yield FolderCheckpoint(cached, model, revision=cached.name)
        return
    with TemporaryDirectory(prefix="edgepack-headers-") as folder:
        yield FolderCheckpoint(*_fetched(model, Path(folder)))


def _fetched(model: str, folder: Path) -> tuple[Path, str, str]:
    """Fill a folder; what `FolderCheckpoint` is opened with."""
    files = [pattern for pattern in FILES if pattern != WEIGHTS]
    snapshot = hub.snapshot(model, files, complete=False)
    for path in snapshot.rglob("*"):
        place = folder / path.relative_to(snapshot)
        if path.is_file() and path.suffix != ".safetensors":
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())
    for name in _weight_files(snapshot, model):
        with hub.explained(model):
            header, size = _header(model, snapshot.name, name)
        with (folder / name).open("wb") as file:
            file.write(header)
            file.truncate(size)
    return folder, model, snapshot.name


def _weight_files(snapshot: Path, model: str) -> list[str]:
    """The files with weights that transformers would load."""
    path = snapshot / shards.INDEX
    if not path.is_file():
        return [shards.SINGLE]
    place = f"{shorten(model, 80)}: {shards.INDEX}"
    content = read_json(path, CheckpointError, place=place)
    index = validate(Index, content, place, CheckpointError, hint="name another model or revision")
    return sorted(set(index.weight_map.values()))


def _header(model: str, commit: str, name: str) -> tuple[bytes, int]:
    """The beginning of a safetensors file, and the file's length."""
    length, size = _part(model, commit, name, 0, LENGTH)
    count = int.from_bytes(length, "little")
    if not 0 < count <= min(MAX_HEADER, size - LENGTH):
        raise CheckpointError(
            f"{shorten(model, 80)}: {shorten(name, 80)} is no safetensors file",
            hint="name another model or revision",
        )
    return length + _part(model, commit, name, LENGTH, count)[0], size


def _part(model: str, commit: str, name: str, start: int, count: int) -> tuple[bytes, int]:
    """Some bytes of a file, and its length."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # exported lazily
        build_hf_headers,
        hf_raise_for_status,
    )

    url = hf_hub_url(model.partition("@")[0], name, revision=commit)
    asked = build_hf_headers() | {"Range": f"bytes={start}-{start + count - 1}"}
    answer = get_session().get(url, headers=asked)
    hf_raise_for_status(answer)
    span = re.fullmatch(
        r"bytes \d+-\d+/(\d{1,18})", answer.headers.get("content-range", ""), re.ASCII
    )
    data = answer.content
    if span is None or len(data) != count or not count < int(span[1]) <= MAX_FILE:
        raise CheckpointError(
            f"{shorten(model, 80)}: {shorten(name, 80)} cannot be read in part here",
            hint=f"hf download {shorten(model.partition('@')[0], 80)}, and try again",
        )
    return data, int(span[1])
