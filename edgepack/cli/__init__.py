"""The command line: the only package that prints, catches errors and exits.

Takes arguments; gives text on the terminal and an exit code. One file a command. May import all
rooms, those that need torch only inside functions.
"""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from typing import Annotated

import typer

from edgepack.cli import (  # noqa: F401  (each adds its commands)
    bench,
    build,
    cache,
    chat,
    compare,
    demo,
    evaluate,
    export_training,
    extract_lora,
    finetune,
    init,
    merge,
    merge_adapter,
    models,
    plan,
    push,
    serve,
    show,
    verify,
)
from edgepack.cli._app import app, heed_signals

__all__ = ["app", "main"]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(installed("edgepack"))
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Compress language models for phones and laptops: W ≈ Q + L·R on stock GGUF blocks.

    A recipe (YAML) says what; `edgepack schema` describes it for editors.
    """


def main() -> None:
    """The console script."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without our characters
    heed_signals()
    app()
