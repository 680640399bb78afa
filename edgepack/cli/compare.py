"""`edgepack compare`: recipes at several sizes beside stock types, as table and picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import edgepack
from edgepack.cli._app import (
    Against,
    Cluster,
    ComputeDevice,
    Data,
    DeviceProfile,
    Json,
    Limit,
    Memory,
    Tasks,
    app,
    print_json,
    read_size,
    task_names,
)
from edgepack.errors import EdgepackError


@app.command()
def compare(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipes (YAML).")],
    sizes: Annotated[str, typer.Option(metavar="SIZES", help="Such as 50MB,60MB,70MB.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where builds, table and picture go.")
    ] = Path("comparison"),
    target: Annotated[str, typer.Option(metavar="NAME", help="gguf or onnx.")] = "gguf",
    against: Against = None,
    tasks: Tasks = "",
    data: Data = None,
    limit: Limit = None,
    device_profile: DeviceProfile = None,
    device: ComputeDevice = "cpu",
    memory: Memory = None,
    cluster: Cluster = None,
    as_json: Json = False,
) -> None:
    """Build recipes at several sizes and measure them beside every stock type.

    For ONNX, beside plain rounding to every grid that ONNX Runtime multiplies fast.

    The table says mean KL to the original at each size, with a star where nothing smaller is
    closer; compare.json, compare.md, compare.svg and compare.png go into the folder. With
    --tasks it has a column for mean zero-shot accuracy, as `evaluate` finds it.
    """
    from edgepack.cli.terminal import drawing
    from edgepack.comparison import plots
    from edgepack.comparison.compare import table
    from edgepack.core.disk import atomic
    from edgepack.core.tables import align, markdown

    wanted = [read_size(text.strip(), "--sizes") for text in sizes.split(",") if text.strip()]
    plots.available()
    _claim(out)
    with drawing() as draw:
        points = edgepack.compare(
            recipes,
            wanted,
            out,
            target=target,
            against=against or (),
            tasks=task_names(tasks),
            data=data,
            limit=limit,
            device_profile=device_profile,
            device=device,
            cluster=cluster,
            progress=draw,
        )
    found = [point.as_dict() for point in points]
    texts = json.dumps(found, indent=1), "\n".join(markdown(table(points)))
    for name, text in zip(FILES[:2], texts, strict=True):
        with atomic(out / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    if as_json:
        print_json(found)
    else:
        typer.echo("\n".join(align(table(points))))
    plots.pareto(points, [out / name for name in FILES[2:]])


FILES = ("compare.json", "compare.md", "compare.svg", "compare.png")


def _claim(out: Path) -> None:
    """Make the folder of a comparison, in which no file of somebody else's has one of our names."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = [name for name in FILES if (out / name).exists()]
        known = None if FILES[0] not in there else json.loads((out / FILES[0]).read_text("utf-8"))
        ours = isinstance(known, list) and all(
            isinstance(point, dict) and {"label", "maker", "kl_mean"} <= point.keys()
            for point in known
        )
    except OSError as error:
        message = f"--out: {out}: cannot be written ({error.strerror})"
        raise EdgepackError(message, hint="--out DIR writes elsewhere") from None
    except (ValueError, RecursionError):
        ours = False
    if there and not ours:
        raise EdgepackError(
            f"--out: {out / there[0]} was not written by edgepack compare",
            hint="--out DIR writes elsewhere",
        )
