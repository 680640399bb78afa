"""`edgepack extract-lora`: a fine-tune and its base become an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from edgepack.cli._app import Json, app, print_json, say
from edgepack.errors import ExportError, RecipeError

SHOWN = 5
"""Weights that are printed: those of which most is left out."""
RANK = 16


@app.command("extract-lora")
def extract_lora(
    finetune: Annotated[
        str, typer.Argument(metavar="FINETUNE", help="A folder, .gguf file or hub id.")
    ],
    base: Annotated[str, typer.Argument(metavar="BASE", help="What it was fine-tuned from.")],
    out: Annotated[Path, typer.Option(metavar="OUT", help="Folder to write.")],
    rank: Annotated[
        int | None, typer.Option(metavar="N", min=1, help=f"Rank of every pair; default: {RANK}.")
    ] = None,
    max_rank: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="In place of --rank: as --energy needs, up to this."),
    ] = None,
    energy: Annotated[
        float, typer.Option(metavar="F", min=0, max=1, help="Share of ‖ΔW‖² that is kept.")
    ] = 0.99,
    dtype: Annotated[Literal["f16", "f32"], typer.Option(help="Type of the pairs.")] = "f16",
    as_json: Json = False,
) -> None:
    """Write the difference of two models as a LoRA adapter, for PEFT and llama.cpp.

    Every linear weight gets the best pair of its rank (a truncated SVD). The report says for each
    what is left out, and what no adapter can hold: embeddings, norms, biases.
    """
    if rank is not None and max_rank is not None:
        raise RecipeError("--rank: give it or --max-rank", hint="--max-rank chooses each rank")
    if out.exists():
        raise ExportError(f"{out}: already exists", hint="give another --out")
    from edgepack.adapters import extract
    from edgepack.adapters.difference import Choice
    from edgepack.checkpoint import open_checkpoint
    from edgepack.cli.terminal import drawing
    from edgepack.core.progress import finish
    from edgepack.core.tables import align
    from edgepack.output.folder import writing

    choice = Choice(rank or RANK) if max_rank is None else Choice(max_rank, energy)
    models = open_checkpoint(finetune), open_checkpoint(base)
    places = [Path(name) for name in (finetune, base)]
    sources = [place for place in places if place.exists()]
    with writing(out, force=False, sources=sources, recipe=Path()) as output, drawing() as draw:
        found = finish(extract.extract(*models, choice, dtype), draw)
        files = extract.write(output.folder, found, models[1], dtype)
        output.publish()
    for line in extract.describe(found.left):
        say(f"warning: left out: {line}")
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
