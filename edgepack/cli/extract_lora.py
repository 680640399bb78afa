"""`edgepack extract-lora`: a fine-tune and its base become an adapter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from edgepack.cli._app import Json, app, print_json, say
from edgepack.cli._mergekit import DEFAULT, FLAGS, NEVER, VALUES, check_count, foreign
from edgepack.core.untrusted import quote
from edgepack.errors import RecipeError

SHOWN = 5
"""Weights that are printed: those of which most is left out."""
RANK = 16
ENERGY = 0.99
OPTIONS = ("--out", "--rank", "--max-rank", "--energy", "--sv-epsilon", "--dtype", "--json")
NO_EMBEDDINGS = f"{NEVER}: embeddings and norms stay the base's; a line says if they differ"
THEIRS = FLAGS | {
    "--embed-lora": NO_EMBEDDINGS,
    "--skip-undecomposable": f"{DEFAULT}: what no LoRA can hold is left out, and a line says so",
}
"""mergekit-extract-lora's options without a value that are not here."""
WITH_VALUE = VALUES | {"--save-module": NO_EMBEDDINGS}


@app.command("extract-lora", context_settings={"ignore_unknown_options": True})
def extract_lora(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FINETUNE BASE",
            help="Two models, each a folder, .gguf file or hub id: the second is what the first "
            "was fine-tuned from.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "--out-path", metavar="OUT", help="Folder to write."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", hidden=True)] = None,
    base_model: Annotated[str | None, typer.Option("--base-model", hidden=True)] = None,
    rank: Annotated[
        int | None, typer.Option(metavar="N", min=1, help=f"Rank of every pair; default: {RANK}.")
    ] = None,
    max_rank: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="In place of --rank: as --energy needs, up to this."),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            metavar="F",
            min=0,
            max=1,
            help=f"Share of ‖ΔW‖² that is kept; default: {ENERGY}, with --sv-epsilon all.",
        ),
    ] = None,
    sv_epsilon: Annotated[
        float, typer.Option(metavar="F", min=0, help="Drop singular values up to this.")
    ] = 0.0,
    distribute_scale: Annotated[
        bool,
        typer.Option(
            "--distribute-scale/--no-distribute-scale",
            help="Singular values as √σ on both sides, or all in A.",
        ),
    ] = True,
    include_regex: Annotated[
        list[str] | None,
        typer.Option("-i", "--include-regex", metavar="RE", help="Only weights so named."),
    ] = None,
    exclude_regex: Annotated[
        list[str] | None,
        typer.Option("-e", "--exclude-regex", metavar="RE", help="No weights so named."),
    ] = None,
    dtype: Annotated[Literal["f16", "f32"], typer.Option(help="Type of the pairs.")] = "f16",
    as_json: Json = False,
) -> None:
    """Write the difference of two models as a LoRA adapter, for PEFT and llama.cpp.

    Every linear weight gets the best pair of its rank (a truncated SVD). The report says for each
    what is left out, and what no adapter can hold: embeddings, norms, biases. Options of
    mergekit-extract-lora that are not listed here are accepted, and a line says what becomes of
    each.
    """
    remarks, given = foreign(names or (), OPTIONS, THEIRS, WITH_VALUE)
    check_count(given, 2, "FINETUNE and BASE are two")
    first, second = [*given, None, None][:2]
    finetune, base = _one("FINETUNE", first, model), _one("BASE", second, base_model)
    if out is None:
        raise RecipeError("--out: is missing", hint="--out names the folder to write")
    wanted = (
        _patterns(include_regex, "--include-regex"),
        _patterns(exclude_regex, "--exclude-regex"),
    )
    if rank is not None and max_rank is not None:
        raise RecipeError("--rank: give it or --max-rank", hint="--max-rank chooses each rank")
    from edgepack.adapters import extract
    from edgepack.adapters.difference import Choice
    from edgepack.checkpoint import open_checkpoint
    from edgepack.checkpoint.naming import naming
    from edgepack.cli.terminal import drawing
    from edgepack.core.progress import finish
    from edgepack.core.tables import align
    from edgepack.output.folder import writing

    if max_rank is not None and energy is None and not sv_epsilon:
        energy = ENERGY
    least = energy if max_rank is not None else None
    choice = Choice(max_rank or rank or RANK, least, sv_epsilon, distribute_scale)
    for line in remarks:
        say(line)
    places = [Path(name) for name in (finetune, base)]
    sources = [place for place in places if place.exists()]
    with writing(out, force=None, sources=sources, recipe=Path()) as output, drawing() as draw:
        models = []
        for name in (finetune, base):
            with naming(name):
                models.append(open_checkpoint(name))
        asked = extract.Wanted(*wanted)
        found = finish(extract.extract(models[0], models[1], choice, dtype, asked), draw)
        files = extract.write(output.folder, found, models[1], dtype)
        output.publish()
    for line in extract.describe(found.left):
        say(f"warning: left out: {line}")
    if found.skipped:
        say(f"{len(found.skipped)} linear weights are left out, as the patterns say")
    if as_json:
        print_json(found.as_json())
        return
    head, *rows = found.table()
    worst = sorted(range(len(rows)), key=lambda i: -found.weights[i].error)[:SHOWN]
    lines = align([head, *(rows[i] for i in worst)])
    typer.echo("\n".join(lines))
    typer.echo(
        f"\n{len(rows)} pairs leave out {found.error:.2%} of the difference; the rest of the table "
        f"is in {out}/{extract.CARD}\n{out}/ has {', '.join(files)}"
    )


def _one(place: str, given: str | None, option: str | None) -> str:
    """A model that is named as an argument, or as mergekit's option."""
    if given is not None and option is not None:
        raise RecipeError(f"{place}: is given twice", hint=f"leave out {quote(option)}")
    found = given if given is not None else option
    if found is None:
        raise RecipeError(
            f"{place}: is missing", hint="edgepack extract-lora FINETUNE BASE --out OUT"
        )
    return found


def _patterns(texts: list[str] | None, option: str) -> tuple[re.Pattern[str], ...]:
    found = []
    for text in texts or ():
        try:
            found.append(re.compile(text))
        except re.error as error:
            raise RecipeError(
                f"{option}: {quote(text)} is no regular expression ({error})",
                hint="it is searched for in names such as model.layers.0.self_attn.q_proj",
            ) from None
    return tuple(found)
