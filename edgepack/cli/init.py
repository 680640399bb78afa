"""`edgepack init`: a recipe to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import edgepack
from edgepack.cli._app import app

RECIPES = Path(edgepack.__file__).parent / "recipe/examples"


@app.command()
def init(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="One of the recipes that edgepack brings.")
    ] = "quickstart",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write; default: NAME.yaml.")
    ] = None,
) -> None:
    """Write a recipe to start from: quickstart, qwen2.5-0.5b, smollm2-web, tinyllama-sliced, or
    one of merge-slerp, merge-ties, merge-dare-ties and merge-frankenmerge."""
    from edgepack.core.plugins import suggest
    from edgepack.errors import RecipeError

    known = tuple(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    if name not in known:
        raise RecipeError(f"there is no recipe {name!r}", hint=suggest(name, known))
    path = out or Path(f"{name}.yaml")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    except FileExistsError:
        raise RecipeError(f"{path}: already exists", hint="--out FILE writes elsewhere") from None
    typer.echo(f"{path} is written; next: edgepack plan {path}")
