"""`edgepack export-training`, `import-training`: the training step as a graph; its result."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import edgepack
from edgepack.cli._app import app


class Mode(StrEnum):
    """What is trained."""

    factors = "factors"
    stack = "stack"


@app.command()
def export_training(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An output folder (gguf or onnx).")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write; default: DIR-training.")
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="Train L and R themselves, or a new adapter on top of them.")
    ] = Mode.factors,
    rank: Annotated[int, typer.Option(metavar="N", min=1, help="Rank of a new adapter.")] = 8,
    length: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Tokens of a row; 0: any number (not in browsers)."),
    ] = 128,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Rows of a step.")] = 1,
    weight_decay: Annotated[float, typer.Option(metavar="F", min=0, help="AdamW's decay.")] = 0.0,
) -> None:
    """Write the training step of a packed model as an ONNX graph, for any ONNX Runtime."""
    from edgepack.cli.terminal import drawing
    from edgepack.finetune.graph.options import AdamW, Options

    options = Options(
        mode=mode.value,
        rank=rank,
        length=length or None,
        batch=batch,
        optimizer=AdamW(weight_decay=weight_decay),
    )
    place = out or folder.resolve().with_name(f"{folder.resolve().name}-training")
    with drawing() as draw:
        written = edgepack.export_training(folder, place, options, progress=draw)
    typer.echo(f"{written}: training.onnx, and train.html for a browser")


@app.command()
def import_training(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The output folder.")],
    training: Annotated[
        Path, typer.Argument(metavar="TRAINING", help="What export-training wrote.")
    ],
    factors: Annotated[
        Path, typer.Argument(metavar="FILE", help="The factors.safetensors that was trained.")
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="Of the adapter.")] = "trained",
) -> None:
    """Keep what a training graph has trained, in a browser say, as an adapter of DIR."""
    from edgepack.finetune.graph.keep import keep

    typer.echo(f"{keep(folder, training, factors, name)}: edgepack chat {folder} --adapter {name}")
