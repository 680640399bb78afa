"""Models side by side: at hand, or made at several sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import edgepack
from edgepack.cli._app import Against, Data, Json, Limit, Tasks, app, print_json
from edgepack.errors import EdgepackError


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
    as_json: Json = False,
) -> None:
    """Measure models side by side through their runtimes (llama.cpp, ONNX Runtime).

    On a text: perplexity, KL to the original and how often the top token is its; a bare .gguf
    file has no KL without --reference. On zero-shot tasks (arc_easy, boolq, copa, hellaswag,
    piqa, winogrande): accuracy, prompted and scored as lm-evaluation-harness does.
    """
    from edgepack.terminal import drawing

    with drawing() as draw:
        found = edgepack.evaluate(
            path,
            against=against or (),
            reference=reference,
            text=text,
            tokens=tokens,
            context=context,
            tasks=_tasks(tasks),
            data=data,
            limit=limit,
            progress=draw,
        )
    if as_json:
        print_json(found.as_dict())
    else:
        typer.echo("\n".join(found.lines()))


def _tasks(names: str) -> list[str]:
    """What --tasks names."""
    from edgepack.evaluate.tasks import TASKS

    found = [name.strip() for name in names.split(",") if name.strip()]
    return list(TASKS) if found == ["all"] else found


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
    as_json: Json = False,
) -> None:
    """Build recipes at several sizes and measure them beside every stock type.

    For ONNX, beside plain rounding to every grid that ONNX Runtime multiplies fast.

    The table says mean KL to the original at each size, with a star where nothing smaller is
    closer; compare.json, compare.md, compare.svg and compare.png go into the folder. With
    --tasks it has a column for mean zero-shot accuracy, as `evaluate` finds it.
    """
    from edgepack import plots
    from edgepack.pareto import table
    from edgepack.report import aligned, markdown
    from edgepack.terminal import drawing

    wanted = [_bytes(text.strip()) for text in sizes.split(",") if text.strip()]
    plots.available()
    _claim(out)
    with drawing() as draw:
        points = edgepack.compare(
            recipes,
            wanted,
            out,
            target=target,
            against=against or (),
            tasks=_tasks(tasks),
            data=data,
            limit=limit,
            progress=draw,
        )
    found = [point.as_dict() for point in points]
    (out / FILES[0]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / FILES[1]).write_text("\n".join(markdown(table(points))) + "\n", encoding="utf-8")
    if as_json:
        print_json(found)
    else:
        typer.echo("\n".join(aligned(table(points))))
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
    except ValueError:
        ours = False
    if there and not ours:
        raise EdgepackError(
            f"--out: {out / there[0]} was not written by edgepack compare",
            hint="--out DIR writes elsewhere",
        )


def _bytes(text: str) -> int:
    """A size such as 64MB."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise EdgepackError(f"--sizes: {text!r} is not a size", hint="write 64MB") from None
