"""Trainings that were begun and not ended, on disk, so that they outlive this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.core.adapters import FILE, check_name
from edgepack.core.disk import atomic
from edgepack.demo.store import home

REQUEST, STATE = "request.json", "state"


@dataclass(frozen=True)
class Job:
    """A training: its folder, and the page's request. `stopped`: a person wished so, or it
    failed; it is not begun again by itself."""

    folder: Path
    request: dict[str, Any]
    stopped: bool = False

    @property
    def model(self) -> str:
        """The id of its model."""
        return str(self.request["model"])

    @property
    def adapter(self) -> str:
        """What it learns is called so."""
        return str(self.request["adapter"])

    @property
    def out(self) -> Path:
        """The file that the worker writes at its end."""
        return self.folder / FILE

    @property
    def state(self) -> Path:
        """What the worker goes on from."""
        return self.folder / STATE

    def save(self, *, stopped: bool) -> Job:
        """Note whether it was stopped."""
        job = Job(self.folder, self.request, stopped)
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic(self.folder / REQUEST) as temporary:
            content = {"request": self.request, "stopped": stopped}
            temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return job


def keep(request: dict[str, Any]) -> Job:
    """Keep a request. Another one for the same adapter takes the place of the old, whose state
    goes with it; the same one again goes on."""
    name = check_name(str(request["adapter"]))
    folder = _jobs() / str(request["model"]) / name
    for known in every():
        if known.folder == folder and _body(known.request) != _body(request):
            shutil.rmtree(folder, ignore_errors=True)
    return Job(folder, request).save(stopped=False)


def every() -> Iterator[Job]:
    """All of them."""
    for path in sorted(_jobs().glob(f"*/*/{REQUEST}")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            yield Job(path.parent, dict(content["request"]), bool(content["stopped"]))
        except (OSError, ValueError, KeyError, TypeError):
            shutil.rmtree(path.parent, ignore_errors=True)  # nobody can go on from that


def forget(model: str, adapter: str | None = None) -> None:
    """Remove what was kept of a training, or of all of a model."""
    for job in every():
        if job.model == model and adapter in (None, job.adapter):
            shutil.rmtree(job.folder, ignore_errors=True)


def _jobs() -> Path:
    return home() / "jobs"


def _body(request: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in request.items() if key not in ("id", "to")}
