"""Packages of somebody else's, seen by this process for as long as a test wants them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgepack.core import fingerprint, plugins


def write_package(
    site: Path, name: str, files: Mapping[str, str], entries: Mapping[str, Mapping[str, str]]
) -> None:
    """Put a distribution into a folder as pip would: modules by path, entry points by group."""
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text, encoding="utf-8")
    about = site / f"{name.replace('-', '_')}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for group, values in entries.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in values.items())]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")


@contextmanager
def on_path(site: Path) -> Iterator[None]:
    """Let this process import what is in `site`; afterwards it is as if it had never been there."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        _forget()
        try:
            yield
        finally:
            for name in set(sys.modules) - before:
                file = getattr(sys.modules[name], "__file__", None)
                if file and Path(file).is_relative_to(site):
                    del sys.modules[name]
    _forget()


def _forget() -> None:
    plugins.forget()
    fingerprint.digest.cache_clear()
    fingerprint._read.cache_clear()
