"""The command line: the only file that prints, catches errors and exits."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

import edgepack
from edgepack.errors import EdgepackError

if TYPE_CHECKING:
    from edgepack.runtimes._base import Runtime, Sampling
    from edgepack.terminal import Conversation

_debug = False


class Commands(TyperGroup):
    """All commands, with their errors as one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with explained(ctx):
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@contextmanager
def explained(ctx: typer.Context) -> Iterator[None]:
    """What the user can act on becomes a line and a hint; a bug stays a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        again = ": run again to resume" if ctx.invoked_subcommand == "build" else ""
        _say(f"interrupted{again}")
        raise typer.Exit(130) from None
    except Exception as error:
        from edgepack.machine import from_machine

        known = error if isinstance(error, EdgepackError) else from_machine(error)
        if known is None:
            raise
        if _debug:
            traceback.print_exc()
        _say(f"error: {known.message}")
        if known.hint:
            _say(f"hint: {known.hint}")
        raise typer.Exit(known.exit_code) from None


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(installed("edgepack"))
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Compress language models for phones and laptops: W ≈ Q + L·R on stock GGUF blocks.

    A recipe (YAML) says what; `edgepack schema` describes it for editors.
    """
    global _debug
    _debug = debug


RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]
Against = Annotated[
    list[Path] | None,
    typer.Option(metavar="PATH", help="Another one for the same tables; may be repeated."),
]
Tasks = Annotated[
    str, typer.Option(metavar="NAMES", help="Zero-shot tasks, with commas between; or all.")
]
Data = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Where the files of the tasks are.")
]
Limit = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Items of each task, evenly spread; default: all."),
]


@app.command()
def build(
    recipe: RecipePath,
    target: Annotated[str, typer.Option(metavar="NAME", help="What to write: gguf.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write; default: NAME-TARGET right here."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace DIR if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Carry a recipe out. A build that was stopped goes on where it was."""
    from edgepack.show import summary
    from edgepack.terminal import drawing

    with drawing() as draw:
        artifact = edgepack.build(recipe, target, out=out, force=force, progress=draw)
    if as_json:
        _json(artifact.manifest)
    else:
        typer.echo("\n".join(summary(artifact.manifest, artifact.folder)))


@app.command()
def plan(
    recipe: RecipePath,
    target: Annotated[
        str, typer.Option(metavar="NAME", help="What would be written: gguf.")
    ] = "gguf",
    as_json: Json = False,
) -> None:
    """Say what `build` would do: stages, sizes, memory. Reads headers only."""
    from edgepack.show import plan_facts, plan_text

    made = edgepack.plan(recipe, target)
    from edgepack.memory import peak

    facts = plan_facts(made, peak(made))
    if as_json:
        _json(facts)
    else:
        typer.echo("\n".join(plan_text(facts)))


@app.command()
def show(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A recipe, an output folder, a .gguf file.")
    ],
    as_json: Json = False,
) -> None:
    """Say what a recipe, output folder, GGUF model or adapter holds."""
    from edgepack.show import describe, render

    facts = describe(path)
    if as_json:
        _json(facts)
    else:
        typer.echo(render(facts))


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="An output folder or a .gguf file.")],
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
    """Measure models side by side through llama.cpp.

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
        _json(found.as_dict())
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
    against: Against = None,
    tasks: Tasks = "",
    data: Data = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Build recipes at several sizes and measure them beside every stock type.

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
    out.mkdir(parents=True, exist_ok=True)
    with drawing() as draw:
        points = edgepack.compare(
            recipes,
            wanted,
            out,
            against=against or (),
            tasks=_tasks(tasks),
            data=data,
            limit=limit,
            progress=draw,
        )
    found = [point.as_dict() for point in points]
    (out / "compare.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / "compare.md").write_text("\n".join(markdown(table(points))) + "\n", encoding="utf-8")
    if as_json:
        _json(found)
    else:
        typer.echo("\n".join(aligned(table(points))))
    plots.pareto(points, [out / "compare.svg", out / "compare.png"])


def _bytes(text: str) -> int:
    """A size such as 64MB."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise EdgepackError(f"--sizes: {text!r} is not a size", hint="write 64MB") from None


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from edgepack.recipe import Recipe

    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    _json(dialect | Recipe.model_json_schema())


@app.command()
def chat(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An output folder.")],
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer this and exit.")
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")] = None,
    factors: Annotated[
        bool, typer.Option("--factors/--no-factors", help="With or without L·R.")
    ] = True,
    max_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Longest answer.")] = 512,
    temperature: Annotated[
        float, typer.Option(metavar="F", min=0, help="0: always the likeliest token.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="For temperatures above 0.")] = 0,
    context: Annotated[
        int, typer.Option(metavar="N", min=64, help="Tokens the model sees at once.")
    ] = 2048,
) -> None:
    """Talk to a packed model through llama.cpp."""
    from edgepack.artifact import Artifact
    from edgepack.runtimes._base import Sampling
    from edgepack.runtimes.llama_cpp import LlamaCpp
    from edgepack.terminal import Conversation, questions

    artifact = Artifact.open(folder)
    sampling = Sampling(temperature=temperature, repeat_penalty=1.1, seed=seed)
    adapter = artifact.factors if factors else None
    with LlamaCpp(artifact.base, adapter, context=context) as runtime:
        conversation = Conversation(runtime, system, max_tokens)
        if prompt is not None:
            _answer(runtime, conversation, prompt, max_tokens, sampling)
            return
        for question in questions():
            with suppress(KeyboardInterrupt):
                _answer(runtime, conversation, question, max_tokens, sampling)


def _answer(
    runtime: Runtime,
    conversation: Conversation,
    question: str,
    max_tokens: int,
    sampling: Sampling,
) -> None:
    """Print an answer as it comes; Ctrl-C keeps what there is of it."""
    from edgepack.runtimes.chat import chat as answer

    messages, dropped = conversation.ask(question)
    if dropped:
        _say(f"(the context is full: {dropped} old messages are forgotten)")
    parts: list[str] = []
    try:
        for part in answer(runtime, messages, max_tokens, sampling):
            parts.append(part)
            print(part, end="", flush=True)
    finally:
        print(flush=True)
        conversation.answered("".join(parts))


def main() -> None:
    """The console script."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without our characters
    app()
