"""`edgepack evaluate`: finished models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import edgepack
from edgepack.cli._adapters import AdapterNames, Adapters
from edgepack.cli._app import (
    Against,
    Cluster,
    ComputeDevice,
    Data,
    Json,
    Limit,
    Tasks,
    app,
    print_json,
    task_names,
)


@app.command()
def evaluate(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="An output folder, a .gguf or .onnx file.")
    ],
    against: Against = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where KL is measured from; default: the folder's original as f16."
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text to predict; default: what the build measured on."),
    ] = None,
    tokens: Annotated[
        int, typer.Option(metavar="N", min=0, help="Tokens of it; 0 leaves the text out.")
    ] = 6144,
    context: Annotated[
        int, typer.Option(metavar="N", min=8, help="Tokens per chunk; the second half is scored.")
    ] = 512,
    tasks: Tasks = "",
    data: Data = None,
    limit: Limit = None,
    adapter: AdapterNames = None,
    device: ComputeDevice = "cpu",
    cluster: Cluster = None,
    as_json: Json = False,
) -> None:
    """Measure models side by side through their runtimes (llama.cpp, ONNX Runtime).

    On a text: perplexity, KL to the original and how often the top token is its; a bare .gguf
    file has no KL without --reference. On zero-shot tasks (arc_easy, boolq, copa, hellaswag,
    piqa, winogrande): accuracy, prompted and scored as lm-evaluation-harness does. With --adapter,
    the folder is measured without its adapters and with them.
    """
    from edgepack.cli.terminal import drawing

    with drawing() as draw:
        found = edgepack.evaluate(
            path,
            against=against or (),
            reference=reference,
            text=text,
            tokens=tokens,
            context=context,
            tasks=task_names(tasks),
            data=data,
            limit=limit,
            adapters=Adapters(path, adapter).files if adapter else (),
            device=device,
            cluster=cluster,
            progress=draw,
        )
    if as_json:
        print_json(found.as_dict())
    else:
        typer.echo("\n".join(found.lines()))
