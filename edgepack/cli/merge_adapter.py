"""`edgepack merge-adapter`: a packed model and adapters become a packed model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import edgepack
from edgepack.cli._adapters import parse
from edgepack.cli._app import Json, app, print_json


@app.command("merge-adapter")
def merge_adapter(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An output folder.")],
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER[=SCALE]...",
            help="Names in DIR/adapters, PEFT folders or GGUF adapters.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="OUT", help="Folder to write.")],
    method: Annotated[
        Literal["cat", "svd", "linear", "ties"],
        typer.Option(help="How several become one, as in PEFT: their exact sum is cat."),
    ] = "cat",
    rank: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="For svd: rank of the sum.")
    ] = None,
    density: Annotated[
        float, typer.Option(metavar="F", min=0, max=1, help="For ties: share of values kept.")
    ] = 0.2,
    merge_factors: Annotated[
        bool, typer.Option("--merge-factors", help="Fold L·R into Q as well.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Make a new packed model out of a packed model and its adapters.

    They are added to the original weights where those can be found, else to Q + L·R, and rounded to
    the same formats with the calibration's H if the cache has it. The report says which.
    """
    from edgepack.cli.terminal import drawing
    from edgepack.report.show import summary

    scales = tuple(parse(adapters, "ADAPTER").items())
    with drawing() as draw:
        artifact = edgepack.merge_adapters(
            folder,
            scales,
            out,
            method=method,
            rank=rank,
            density=density,
            merge_factors=merge_factors,
            force=force,
            progress=draw,
        )
    if as_json:
        print_json(artifact.manifest)
    else:
        typer.echo("\n".join(summary(artifact.manifest, artifact.folder)))
