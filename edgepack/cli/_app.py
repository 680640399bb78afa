"""The program all commands belong to: its errors, what it prints, the options they share."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgepack.errors import EdgepackError


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
        say(f"interrupted{again}")
        raise typer.Exit(130) from None
    except Exception as error:
        from edgepack.machine import from_machine

        known = error if isinstance(error, EdgepackError) else from_machine(error)
        if known is None:
            raise
        if ctx.params.get("debug"):
            traceback.print_exc()
        say(f"error: {known.message}")
        if known.hint:
            say(f"hint: {known.hint}")
        raise typer.Exit(known.exit_code) from None


def say(line: str) -> None:
    typer.echo(line, err=True)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


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
