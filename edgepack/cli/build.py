"""`edgepack build`: from a recipe to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import edgepack
from edgepack.cli._app import Json, RecipePath, app, print_json


@app.command()
def build(
    recipe: RecipePath,
    target: Annotated[
        str, typer.Option(metavar="NAME", help="What to write: gguf, onnx or checkpoint.")
    ] = "gguf",
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write; default: NAME-TARGET right here."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace DIR if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Carry a recipe out. A build that was stopped goes on where it was."""
    from edgepack.cli.terminal import drawing
    from edgepack.report.show import summary

    with drawing() as draw:
        artifact = edgepack.build(recipe, target, out=out, force=force, progress=draw)
    if as_json:
        print_json(artifact.manifest)
    else:
        typer.echo("\n".join(summary(artifact.manifest, artifact.folder)))
