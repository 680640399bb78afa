"""`edgepack plan`: what a build would do, from headers alone."""

from __future__ import annotations

from typing import Annotated

import typer

import edgepack
from edgepack.cli._app import (
    ComputeDevice,
    DeviceProfile,
    ExperimentalTypes,
    Json,
    Memory,
    RecipePath,
    app,
    print_json,
)


@app.command()
def plan(
    recipe: RecipePath,
    target: Annotated[
        str, typer.Option(metavar="NAME", help="What would be written: gguf, onnx or checkpoint.")
    ] = "gguf",
    device_profile: DeviceProfile = None,
    experimental_types: ExperimentalTypes = False,
    device: ComputeDevice = "cpu",
    memory: Memory = None,
    as_json: Json = False,
) -> None:
    """Say what `build` would do: stages, sizes, memory. Reads headers only."""
    from edgepack.report.show import plan_facts, plan_text

    made = edgepack.plan(
        recipe,
        target,
        device_profile=device_profile,
        experimental_types=experimental_types,
        device=device,
    )
    facts = plan_facts(made)
    if as_json:
        print_json(facts)
    else:
        typer.echo("\n".join(plan_text(facts)))
