"""`edgepack merge`: several models become one, with mergekit's recipes and its habits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import edgepack
from edgepack.cli._app import Cluster, Json, Memory, app, print_json, say
from edgepack.cli._mergekit import check_count, foreign
from edgepack.errors import RecipeError

if TYPE_CHECKING:
    from edgepack.core.artifact import Artifact

OPTIONS = (
    *("--out-shard-size", "--random-seed", "--check", "--force", "--memory", "--cluster"),
    "--json",
)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def merge(
    context: typer.Context,
    config: Annotated[
        Path,
        typer.Argument(metavar="CONFIG", help="mergekit's YAML, or a recipe with a merge section."),
    ],
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="Folder to write.", show_default=False)
    ] = None,
    out_path: Annotated[Path | None, typer.Option("--out-path", hidden=True)] = None,
    out_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Most bytes of a file of weights: 5B, 500MB.")
    ] = "5B",
    random_seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Of methods that draw random numbers.")
    ] = 0,
    check: Annotated[
        bool,
        typer.Option("--check", help="Compare the models and stop; no weights are read."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    memory: Memory = None,
    cluster: Cluster = None,
    as_json: Json = False,
) -> None:
    """Merge models into one: mergekit's recipes, one tensor in memory at a time.

    OUT gets safetensors, configuration, tokenizer and a model card. A merge that was stopped goes
    on where it was. Options of mergekit that are not listed here are accepted, and a line says what
    becomes of each.
    """
    remarks, more = foreign(context.args, OPTIONS)
    check_count(more, 0, "CONFIG and OUT are two")
    if check:
        raise typer.Exit(_check(config, as_json=as_json))
    folder = out or out_path
    if folder is None:
        raise RecipeError("OUT: is missing", hint=f"edgepack merge {config} OUT")
    for line in remarks:
        say(line)
    from edgepack.cli.terminal import drawing

    with drawing() as draw:
        artifact = edgepack.merge_models(
            config,
            folder,
            seed=random_seed,
            shard_size=parse_size(out_shard_size),
            force=force,
            cluster=cluster,
            progress=draw,
        )
    if as_json:
        print_json(artifact.manifest)
    else:
        typer.echo("\n".join(_summary(artifact)))


def _check(config: Path, *, as_json: bool) -> int:
    """Print what the models of every merge are and where they differ; the exit code."""
    from edgepack.merge.documents import check_merges
    from edgepack.recipe.read import load_merges

    checks = check_merges(load_merges(config), config.parent)
    if as_json:
        print_json({name: found.as_json() for name, found in checks})
    else:
        blocks = [
            [f"{name}:", *found.lines()] if len(checks) > 1 else found.lines()
            for name, found in checks
        ]
        typer.echo("\n\n".join("\n".join(lines) for lines in blocks))
    return max(found.exit_code for _, found in checks)


def parse_size(text: str) -> int:
    """Bytes from 5B (mergekit's five thousand million), 500M, 2GB, or a plain number."""
    units = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    word = text.strip().upper()
    number = word.rstrip("KMGB")
    unit = word[len(number) :]
    try:
        size = float(number) * units[unit]
    except (KeyError, ValueError):
        raise RecipeError(
            f"--out-shard-size: {text!r} is no size", hint="write 5B, 500MB or a number of bytes"
        ) from None
    if not 1 <= size <= 2**60:
        raise RecipeError(f"--out-shard-size: {text!r} is out of range", hint="write 5B")
    return int(size)


def _summary(artifact: Artifact) -> list[str]:
    """What was made of what, and what to do next."""
    from edgepack.core.tables import format_size
    from edgepack.report.page import merge as merge_lines
    from edgepack.report.show import remarks

    manifest = artifact.manifest
    about = manifest["merge"]
    return [
        *merge_lines(about),
        f"  {about['layers']} layers, {format_size(about['bytes'])}",
        *remarks([], manifest["warnings"]),
        "",
        f"The model and its card are in {artifact.folder}/",
        f"  write `model: {artifact.folder}` in a recipe, then edgepack build, to compress it",
    ]
