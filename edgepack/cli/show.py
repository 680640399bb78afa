"""`edgepack show` and `edgepack schema`: what files hold, and what a recipe may say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli._app import Json, app, print_json


@app.command()
def show(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A recipe, an output folder, a .gguf file.")
    ],
    as_json: Json = False,
) -> None:
    """Say what a recipe, output folder, GGUF model or adapter holds."""
    from edgepack.report.show import describe, render

    facts = describe(path)
    if as_json:
        print_json(facts)
    else:
        typer.echo(render(facts))


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from edgepack.recipe.sections import Recipe

    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    print_json(dialect | Recipe.model_json_schema())
