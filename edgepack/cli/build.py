"""From a recipe to a folder, and looking at either."""

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
    from edgepack.show import summary
    from edgepack.terminal import drawing

    with drawing() as draw:
        artifact = edgepack.build(recipe, target, out=out, force=force, progress=draw)
    if as_json:
        print_json(artifact.manifest)
    else:
        typer.echo("\n".join(summary(artifact.manifest, artifact.folder)))


RECIPES = Path(edgepack.__file__).parent / "recipes"


@app.command()
def init(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="One of the recipes that edgepack brings.")
    ] = "quickstart",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write; default: NAME.yaml.")
    ] = None,
) -> None:
    """Write a recipe to start from: quickstart, qwen2.5-0.5b, smollm2-web, tinyllama-sliced."""
    from edgepack.errors import RecipeError
    from edgepack.plugins import suggest

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


@app.command()
def plan(
    recipe: RecipePath,
    target: Annotated[
        str, typer.Option(metavar="NAME", help="What would be written: gguf, onnx or checkpoint.")
    ] = "gguf",
    as_json: Json = False,
) -> None:
    """Say what `build` would do: stages, sizes, memory. Reads headers only."""
    from edgepack.show import plan_facts, plan_text

    made = edgepack.plan(recipe, target)
    from edgepack.memory import peak

    facts = plan_facts(made, peak(made))
    if as_json:
        print_json(facts)
    else:
        typer.echo("\n".join(plan_text(facts)))


@app.command()
def show(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A recipe, an output folder, a .gguf file.")
    ],
    as_json: Json = False,
) -> None:
    """Say what a recipe, output folder, GGUF model or adapter holds."""
    from edgepack.show import describe, render

    facts = describe(path)
    if as_json:
        print_json(facts)
    else:
        typer.echo(render(facts))


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from edgepack.recipe import Recipe

    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    print_json(dialect | Recipe.model_json_schema())
