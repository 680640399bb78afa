"""`edgepack finetune`: from a finished folder and examples to an adapter in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgepack.cli._app import ComputeDevice, Json, app, print_json


@app.command()
def finetune(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An output folder.")],
    data: Annotated[
        Path, typer.Option(metavar="FILE", help="Examples: a .jsonl, a .json or a text.")
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the adapter; default: that of FILE.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(metavar="MODE", help="stack (a new adapter; default) or factors (L and R)."),
    ] = None,
    r: Annotated[
        int | None, typer.Option("-r", "--rank", metavar="N", help="Rank of a stack.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Times each example is seen.")
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Steps, for epochs.")] = None,
    learning_rate: Annotated[float | None, typer.Option(metavar="F", help="Of AdamW.")] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Examples of a step.")] = None,
    sequence_length: Annotated[
        int | None, typer.Option(metavar="N", help="Most tokens of an example.")
    ] = None,
    replay: Annotated[
        float | None,
        typer.Option(metavar="F", help="General text to go on knowing, for each example learnt."),
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Examples that judge.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most memory, such as 800MB.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any other key of a recipe's `finetune:` section."
        ),
    ] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that cannot be used.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an adapter.")] = False,
    device: ComputeDevice = "cpu",
    as_json: Json = False,
) -> None:
    """Train an adapter on your own examples. Nothing leaves this machine; a run that was stopped
    goes on where it was."""
    from edgepack.cli.terminal import drawing
    from edgepack.finetune import finetune as tune
    from edgepack.finetune.run import pairs

    given: dict[str, Any] = {
        "data": str(data),
        "name": name,
        "mode": mode,
        "r": r,
        "epochs": epochs,
        "steps": steps,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "sequence_length": sequence_length,
        "replay": replay,
        "validation": None if validation is None else str(validation),
        "memory": memory,
        "skip_bad_rows": skip_bad_rows,
    }
    with drawing() as draw:
        options = given | pairs(option or [])
        found = tune(folder, **options, force=force, device=device, progress=draw)
    if as_json:
        print_json(dict(found.result))
    else:
        typer.echo("\n".join(found.lines()))
