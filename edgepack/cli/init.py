"""`edgepack init`: a recipe to start from, for a model and a device or by name."""

from __future__ import annotations

import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import edgepack
from edgepack.cli._app import app, say
from edgepack.errors import RecipeError

if TYPE_CHECKING:
    from edgepack.init.write import Written

EXAMPLES = Path(edgepack.__file__).parent / "recipe/examples"
KINDS = "a model is OWNER/NAME on the hub, a folder, a .gguf file or package:PACKAGE/FILE.gguf"


@app.command()
def init(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A hub id, a folder, a .gguf file; or the name of an example."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="phone-4gb, phone-8gb, laptop, browser, or a bench.json of your device; default: "
            "the smallest of the first three that the model fits on.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="gguf or onnx; default: as the device has it."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="File to write; default: MODEL-DEVICE.yaml."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Write a commented recipe for a model and a device: size, formats, context.

    Only headers are read. The recipe is planned before it is written. Without a device, MODEL may
    be an example: quickstart, qwen2.5-0.5b, smollm2-web, tinyllama-sliced, or one of merge-slerp,
    merge-ties, merge-dare-ties and merge-frankenmerge.
    """
    examples = tuple(sorted(path.stem for path in EXAMPLES.glob("*.yaml")))
    if model is None:
        raise RecipeError(
            "init: for which model?",
            hint=f"{KINDS}; without one of your own: edgepack init quickstart",
        )
    if model in examples and device is None and target is None and not Path(model).exists():
        path = out or Path(f"{model}.yaml")
        _write_example(model, path, force=force)
        typer.echo(f"{path} is written; next: edgepack plan {path}")
        return
    _refuse_unknown(model, examples)
    from edgepack.init.write import write_recipe

    written = write_recipe(model, device, target, out, force=force)
    typer.echo("\n".join(_said(written)))
    for line in written.warnings:
        say("\n".join(textwrap.wrap(f"warning: {line}", 79)))


def _write_example(name: str, path: Path, *, force: bool) -> None:
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write((EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8"))
    except FileExistsError:
        raise RecipeError(
            f"{path}: already exists", hint="--out FILE writes elsewhere, --force replaces it"
        ) from None


def _refuse_unknown(model: str, examples: tuple[str, ...]) -> None:
    """Refuse a word that is neither a path nor an id with an owner before the hub is asked."""
    is_word = not {"/", "\\", ":"} & set(model) and not model.endswith(".gguf")
    if is_word and not Path(model).expanduser().exists():
        if model in examples:
            raise RecipeError(
                f"init: {model} is an example, written as it is: it takes no --device or --target",
                hint="name its model to write a recipe for a device; --target is for build",
            )
        import difflib

        near = difflib.get_close_matches(model, examples, n=1, cutoff=0.5)
        hint = f"did you mean the example {near[0]}? " if near else ""
        raise RecipeError(f"init: there is no model or example {model!r}", hint=f"{hint}{KINDS}")


def _said(written: Written) -> list[str]:
    """What was chosen, and what to do next."""
    from edgepack.core.tables import format_size

    choice, path = written.choice, shlex.quote(str(written.path))
    names = choice.candidates or (choice.format,)
    what = (
        f"{written.path} is written: {written.plan.model.source['model']} for {choice.device.name} "
        f"({choice.device.title})"
    )
    return [
        *textwrap.wrap(what, 79),
        f"  size     {format_size(choice.size)} of {choice.target.name}, "
        f"{choice.bits:.2f} bits per weight",
        f"  formats  {', '.join(map(str, names))}",
        f"  context  {choice.needs.context:,} tokens, {format_size(choice.needs.cache)}",
        "",
        "next:",
        f"  edgepack plan {path} --target {choice.target.name}",
        f"  edgepack build {path} --target {choice.target.name}",
    ]
