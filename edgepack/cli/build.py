"""`edgepack build`: from a recipe to a folder."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import edgepack
from edgepack.cli._app import (
    Cluster,
    ComputeDevice,
    DeviceProfile,
    ExperimentalTypes,
    Json,
    Memory,
    RecipePath,
    app,
    print_json,
)
from edgepack.errors import EdgepackError

if TYPE_CHECKING:
    from edgepack.core.artifact import Artifact

ROUNDS = 3
"""Of the measurement that a prediction is held against."""


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
    device_profile: DeviceProfile = None,
    experimental_types: ExperimentalTypes = False,
    device: ComputeDevice = "cpu",
    memory: Memory = None,
    cluster: Cluster = None,
    as_json: Json = False,
) -> None:
    """Carry a recipe out. A build that was stopped goes on where it was.

    With --device-profile, types that are slow on that device are no candidates, the speed there is
    predicted, and if the device is this machine the prediction is held against a measurement.
    """
    from edgepack.cli.terminal import drawing
    from edgepack.report.show import summary

    with drawing() as draw:
        artifact = edgepack.build(
            recipe,
            target,
            out=out,
            force=force,
            device_profile=device_profile,
            experimental_types=experimental_types,
            device=device,
            cluster=cluster,
            progress=draw,
        )
    if as_json:
        print_json(artifact.manifest)
    else:
        typer.echo("\n".join(summary(artifact.manifest, artifact.folder)))
        _check_prediction(artifact)


def _check_prediction(artifact: Artifact) -> None:
    """Hold what was predicted for this machine against a short measurement."""
    from edgepack import devices
    from edgepack.bench import bench
    from edgepack.bench.predictions import is_of
    from edgepack.cli.terminal import drawing

    prediction = artifact.manifest["prediction"]
    if prediction is None or prediction["skipped"] or not is_of(prediction, devices.get("local")):
        return
    threads = [prediction["threads"]]
    try:
        with drawing() as draw:
            found = bench(
                [artifact.folder], threads=threads, rounds=ROUNDS, limits=False, progress=draw
            )
    except EdgepackError as error:  # the files are there, whatever the runtime says
        lines = [f"the prediction was not checked: {error.message}"]
    else:
        lines = found.remarks
    typer.echo("\n".join(["", *(wrap for line in lines for wrap in textwrap.wrap(line, 79))]))
