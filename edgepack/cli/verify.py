"""`edgepack verify`: whether a folder is what it says it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli._app import Json, app, print_json
from edgepack.core.progress import finish


@app.command()
def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="An output folder, or an adapter's folder.")
    ],
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="An adapter that should fit DIR; may be repeated."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure again what the manifest says of KL.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="For --measure: the original.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For --measure: the text of the build.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that a folder is what its manifest says, byte by byte and in what it holds.

    Files are hashed; the structure of GGUF, ONNX and safetensors files, formats, sizes, bits per
    weight, tokenizer, reports and adapters are held against the manifest. --measure runs the files
    in their runtime, and the original beside them. The exit code is 1 if anything is wrong.
    """
    from edgepack.cli.terminal import drawing
    from edgepack.verify.run import Request
    from edgepack.verify.run import verify as run

    request = Request(folder, tuple(adapter or ()), measure or bool(model), model, text)
    with drawing() as draw:
        found = finish(run(request), draw)
    if as_json:
        print_json(found.as_dict())
    else:
        typer.echo("\n".join(found.lines()))
    if found.failed:
        raise typer.Exit(1)
