"""`edgepack demo DIR --web OUT`: the page as a folder for any web server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from edgepack.core.progress import finish
from edgepack.errors import EdgepackError

DEFAULT_LENGTH = 64


def write_web(folders: Sequence[Path], out: Path, modules: Path | None, length: int) -> None:
    """Write the folder, and say how it is served. `length` 0: models do not learn in the page."""
    from edgepack.cli.terminal import drawing
    from edgepack.demo import web
    from edgepack.demo.web_models import Training

    if not folders:
        raise EdgepackError("--web needs a model", hint="edgepack demo DIR --web OUT")
    training = Training(length=length) if length else None
    with drawing() as draw:
        remarks = finish(web.write_web(folders, out, modules=modules, training=training), draw)
    for remark in remarks:
        typer.echo(f"note: {remark}")
    typer.echo(f"{out}: put it on a web server; to try it, python -m http.server -d {out}")
