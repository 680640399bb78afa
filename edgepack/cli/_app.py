"""The program all commands belong to: its errors, what it prints, the options they share."""

from __future__ import annotations

import json
import signal
import sys
import traceback
from _thread import interrupt_main
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer, main_thread
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgepack.errors import EdgepackError

AGAIN = 0.02
"""Seconds until a signal that Python dropped is raised again."""
RESUMED = ("build", "compare", "finetune", "merge", "merge-adapter", "push")


class Stopped(KeyboardInterrupt):
    """Another signal that ends the process, to be cleaned up after as after Ctrl-C."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.number = number


def heed_signals() -> None:
    """Let SIGTERM and SIGHUP end the process in good order."""

    def stop(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough, the second would stop the cleaning
        raise Stopped(signal.Signals(number))

    def raise_again(dropped: Any) -> None:
        """Python drops what is raised while an object is being destroyed, or in a callback from C:
        then the signal is sent once more."""
        error = dropped.exc_value
        if not isinstance(error, KeyboardInterrupt):
            sys.__unraisablehook__(dropped)
            return
        number = signal.SIGINT
        if isinstance(error, Stopped):
            number = error.number
            signal.signal(number, stop)
        timer = Timer(AGAIN, _signal_main, [number])
        timer.daemon = True
        timer.start()

    sys.unraisablehook = raise_again
    for name in ("SIGTERM", "SIGHUP"):
        known = getattr(signal, name, None)  # Windows has no SIGHUP
        if known is not None and signal.getsignal(known) == signal.SIG_DFL:  # nohup ignores it
            signal.signal(known, stop)


def _signal_main(number: signal.Signals) -> None:
    """Signal the main thread, which may be waiting for something."""
    if sys.platform == "win32":
        interrupt_main(number)
    else:
        signal.pthread_kill(main_thread().ident or 0, number)


ORDER = (
    *("models", "init", "plan", "build", "show", "chat", "demo", "serve", "finetune", "merge"),
    *("merge-adapter", "extract-lora", "verify", "push", "evaluate", "compare", "bench", "cache"),
    *("export-training", "import-training", "schema"),
)
"""Commands as people come to need them."""


class Commands(TyperGroup):
    """All commands, with their errors as one line and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In order; those that others add come last."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

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
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        what = f"stopped by {number.name}" if isinstance(stop, Stopped) else "interrupted"
        again = ": run again to resume" if ctx.invoked_subcommand in RESUMED else ""
        say(f"{what}{again}")
        raise typer.Exit(128 + number) from None
    except Exception as error:
        from edgepack.core.os_errors import from_os_error

        known = error if isinstance(error, EdgepackError) else from_os_error(error)
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


def read_size(text: str, option: str) -> int:
    """A size such as 64MB, in bytes."""
    from edgepack.recipe.fields import parse_size

    try:
        return parse_size(text)
    except ValueError:
        raise EdgepackError(f"{option}: {text!r} is not a size", hint="write 64MB or 8GB") from None


def heed_memory(size: str | None) -> None:
    """What `Memory` says holds for this process and those that it starts."""
    if size is not None:
        from edgepack.core.hardware import limit_memory

        limit_memory(read_size(size, "--memory"))


def task_names(names: str) -> list[str]:
    """What --tasks names."""
    from edgepack.metrics.tasks import TASKS

    found = [name.strip() for name in names.split(",") if name.strip()]
    return list(TASKS) if found == ["all"] else found


RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")]
DeviceProfile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="bench.json of the device that files are for, from `edgepack bench --all-types`.",
    ),
]
ComputeDevice = Annotated[
    str,
    typer.Option(
        "--device", metavar="NAME", help="Where to compute: cpu, cuda, cuda:1, mps, or auto."
    ),
]
ExperimentalTypes = Annotated[
    bool,
    typer.Option("--experimental-types", help="Allow types that stock runtimes do not have yet."),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="A Ray cluster that shares the work: auto, HOST:PORT or ray://HOST:PORT.",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        callback=heed_memory,
        help="Most memory to use, such as 8GB: more is done in several passes, or refused.",
    ),
]
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
