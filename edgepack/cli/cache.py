"""`edgepack cache`: look after the results that stages have left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli._app import Json, app, print_json, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepack.core.cache import Entry

cache = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look after the results that stages have left: list, check, remove.",
)
app.add_typer(cache, name="cache")


@cache.command()
def ls(as_json: Json = False) -> None:
    """List results by stage: size, when they were made and used, whether they are whole.

    A result is whole, partial (begun: a run that was stopped goes on from it), in use, or damaged.
    """
    from edgepack.core.cache import beside, entries
    from edgepack.core.disk import root
    from edgepack.core.tables import align, format_size

    found = entries(root())
    others = beside(root(), found)
    total = sum(entry.bytes for entry in found)
    if as_json:
        results = [entry.as_json() for entry in found]
        print_json({"path": str(root()), "bytes": total, "results": results, "beside": others})
        return
    if found:
        head = ["stage", "key", "size", "made", "used", "state", "model"]
        typer.echo("\n".join(align([head, *map(_row, found)])))
    typer.echo(f"{_count(found)}, {format_size(total)}, in {root()}")
    if others:
        named = ", ".join(f"{name} {format_size(size)}" for name, size in others.items())
        typer.echo(f"beside them: {named}")


@cache.command()
def rm(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="A stage, the beginning of a key, or STAGE/KEY."),
    ],
) -> None:
    """Remove results. What a process reads or makes is refused."""
    from edgepack.core.cache import entries, find
    from edgepack.core.disk import clean, root

    clean()
    if not _remove(find(entries(root()), names)):
        raise typer.Exit(1)


@cache.command()
def verify(
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what is damaged; it is then made anew.")
    ] = False,
) -> None:
    """Read every finished result and hold it against its list of digests; 1 if one is damaged."""
    from edgepack.cli.terminal import drawing
    from edgepack.core.cache import entries
    from edgepack.core.cache import verify as check
    from edgepack.core.disk import root
    from edgepack.core.progress import finish
    from edgepack.core.tables import format_size

    found = [entry for entry in entries(root()) if not entry.partial]
    with drawing() as draw:
        damaged = finish(check(found), draw)
    for folder, names in damaged.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        typer.echo(f"damaged: {folder}: {names[0]}{more}")
    size = format_size(sum(entry.bytes for entry in found))
    typer.echo(f"{_count(found)}, {size}, {len(damaged) or 'none'} damaged")
    wrong = [entry for entry in found if entry.folder in damaged]
    if wrong and not (repair and _remove(wrong)):
        raise typer.Exit(1)


@cache.command()
def prune(
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Not used for so long: 30d, 12h, 2w.")
    ],
    keep_last: Annotated[
        int, typer.Option(metavar="N", min=0, help="Keep the N of each stage that were used last.")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")
    ] = False,
) -> None:
    """Remove results that were not used for some time. What is in use stays."""
    from edgepack.core.cache import entries, parse_age, unused
    from edgepack.core.disk import clean, root

    age = parse_age(older_than)
    if not dry_run:
        clean()
    _remove(unused(entries(root()), time.time() - age, keep_last), dry_run=dry_run)


def _remove(wanted: Sequence[Entry], *, dry_run: bool = False) -> bool:
    """Remove results, and say what that freed; whether all are gone."""
    from edgepack.core.tables import format_size
    from edgepack.errors import EdgepackError

    gone: list[Entry] = []
    for entry in wanted:
        size = entry.bytes  # before it goes
        name = f"{entry.result.stage}/{entry.result.key}"
        why = "it was removed meanwhile"
        try:
            removed = entry.state != "in use" if dry_run else entry.remove()
        except EdgepackError as error:
            removed, why = False, f"{error.message}; {error.hint}"
        if removed:
            gone.append(entry)
            typer.echo(f"{name}  {format_size(size)}")
            continue
        if holders := [*entry.result.users(), *filter(None, [entry.result.maker()])]:
            why = f"it is in use by {holders[0]}"
        say(f"{name} stays: {why}")
    verb = "would be freed" if dry_run else "freed"
    typer.echo(f"{_count(gone)}, {format_size(sum(entry.bytes for entry in gone))} {verb}")
    return len(gone) == len(wanted)


def _count(found: Sequence[Entry]) -> str:
    return f"{len(found)} result{'' if len(found) == 1 else 's'}"


def _row(entry: Entry) -> list[str]:
    from edgepack.core.cache import SHORT
    from edgepack.core.tables import format_size

    state = str(entry.state)
    if entry.holders:
        state += f" (process {', '.join(sorted({str(one.pid) for one in entry.holders}))})"
    times = [_ago(entry.made), _ago(entry.used)]
    size = format_size(entry.bytes)
    return [entry.result.stage, entry.result.key[:SHORT], size, *times, state, entry.model or "–"]


def _ago(moment: float) -> str:
    seconds = max(0.0, time.time() - moment)
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"
