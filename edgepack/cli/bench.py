"""`edgepack bench`: speed and memory of finished files on a device, beside its limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli._app import Json, app, print_json
from edgepack.errors import EdgepackError

if TYPE_CHECKING:
    from edgepack.runtimes.models import Model

FACTORS = ("with", "without", "both")


@app.command()
def bench(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH...", help="Output folders, .gguf or .onnx files."),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="local, adb[:SERIAL] or ssh:HOST.")
    ] = "local",
    prompt: Annotated[
        str, typer.Option(metavar="N,...", help="Lengths of prompts, in tokens.")
    ] = "256",
    decode: Annotated[
        int, typer.Option(metavar="N", min=0, help="Tokens to decode; 0: none.")
    ] = 64,
    depth: Annotated[
        str, typer.Option(metavar="N,...", help="Tokens that are in the context before.")
    ] = "0",
    batch: Annotated[str, typer.Option(metavar="N,...", help="Sequences run together.")] = "1",
    threads: Annotated[
        str, typer.Option(metavar="N,...", help="Numbers of threads; default: physical cores.")
    ] = "",
    rounds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Turns that each model gets.")
    ] = 5,
    factors: Annotated[
        str, typer.Option(metavar="HOW", help="Measure with L·R, without, or both.")
    ] = "with",
    all_types: Annotated[
        bool,
        typer.Option("--all-types", help="Time all types: for `build --device-profile`."),
    ] = False,
    limits: Annotated[
        bool, typer.Option("--limits/--no-limits", help="Measure the device's limits, too.")
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write bench.json, bench.md and pictures here."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="PATH... are two bench.json to compare.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON of llama-bench (-o json) to set beside it."),
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Only remove what earlier runs sent to the device.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure tokens per second and memory, beside what the device can do.

    Models take turns in processes of their own, so that ratios hold on a machine with other things
    to do. Decoding is a share of reading the weights at the measured bandwidth, prompts of the
    fastest product. Nothing is averaged away: bench.json has every round.
    """
    if compare:
        return _compare(paths or [], as_json=as_json)
    if clear:
        return _clear(device)
    from edgepack.bench import bench as run
    from edgepack.bench import tables
    from edgepack.bench.folder import claim, write
    from edgepack.bench.llama_bench import beside, read_llama_bench
    from edgepack.cli.terminal import drawing

    theirs = read_llama_bench(against) if against else None
    if out:
        claim(out)
    with drawing() as draw:
        found = run(
            _models(paths or [], factors),
            device=device,
            prompts=_numbers(prompt, "--prompt"),
            decode=decode,
            depths=_numbers(depth, "--depth", least=0),
            batches=_numbers(batch, "--batch"),
            threads=_numbers(threads, "--threads") if threads else (),
            rounds=rounds,
            limits=limits,
            all_types=all_types,
            progress=draw,
        )
    if out:
        write(found, out)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    typer.echo("\n".join(tables.terminal(found)))
    if theirs is not None:
        typer.echo("\n".join(["", *beside(found, theirs)]))


def _compare(paths: list[Path], *, as_json: bool) -> None:
    from edgepack.bench.compare import compare, table
    from edgepack.bench.results import read
    from edgepack.core.tables import align

    if len(paths) != 2:
        raise EdgepackError("--compare: takes two files", hint="edgepack bench --compare A B")
    changes, notes = compare(*map(read, paths))
    if as_json:
        print_json([change.as_dict() for change in changes])
    else:
        typer.echo("\n".join([*align(table(changes)), *notes]))


def _clear(device: str) -> None:
    from edgepack import devices
    from edgepack.core.tables import format_size

    with devices.get(device) as found:
        typer.echo(f"{found}: {format_size(found.clear())} removed")


def _models(paths: list[Path], factors: str) -> list[Model]:
    """The models of the paths, with factors, without, or both side by side."""
    from dataclasses import replace

    from edgepack.runtimes.models import Model

    if not paths:
        raise EdgepackError("names no model", hint="edgepack bench DIR")
    if factors not in FACTORS:
        raise EdgepackError(f"--factors: {factors!r}", hint=f"one of {', '.join(FACTORS)}")
    loaded = [Model.from_path(path) for path in paths]
    if factors != "with" and not any(model.adapter for model in loaded):
        raise EdgepackError(
            f"--factors: {paths[0]} has none beside it that could be left out",
            hint="leave --factors away",
        )
    found: list[Model] = []
    for model in loaded:
        if factors != "without" or model.adapter is None:
            found.append(model)
        if factors != "with" and model.adapter is not None:
            found.append(replace(model, name=f"{model.name} without L·R", adapter=None))
    return found


def _numbers(text: str, option: str, least: int = 1) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        found = ()
    if not found or min(found) < least or max(found) > 1 << 20:
        raise EdgepackError(f"{option}: {text!r}", hint="write numbers, such as 128,512")
    return tuple(dict.fromkeys(found))
