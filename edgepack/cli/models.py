"""`edgepack models`: families, published models, and what works for each."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli._app import Json, app, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from edgepack.catalogue.families import Family

YES, NO = "✓", "–"


@app.command()
def models(
    family: Annotated[
        str | None,
        typer.Argument(metavar="FAMILY", help="Only this one, with the names of its models."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List model families, their sizes, and what works for each."""
    from rich.console import Console

    from edgepack.catalogue.families import families, find

    found = families() if family is None else (find(family),)
    if as_json:
        print_json([one.as_json() for one in found])
        return
    console = Console(highlight=False, markup=False)
    console.print(_table(found))
    lines = _legend() if family is None else _details(found[0])
    console.print("\n".join(lines))


def _table(found: Sequence[Family]) -> Table:
    """A row a family."""
    from rich import box
    from rich.table import Table

    from edgepack.catalogue.families import CAPABILITIES

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("family", no_wrap=True)
    table.add_column("sizes", no_wrap=True)
    for one in CAPABILITIES:
        table.add_column(one.title, justify="center", min_width=max(map(len, one.title.split())))
    for family in found:
        marks = [NO if family.answers[one.key] else YES for one in CAPABILITIES]
        table.add_row(family.name, family.sizes, *marks)
    return table


def _legend() -> list[str]:
    """What the columns are, and what to do next."""
    from edgepack.catalogue.families import CAPABILITIES

    width = max(len(one.title) for one in CAPABILITIES)
    return [
        *(f"{one.title:<{width}}  {one.about.replace('`', '')}" for one in CAPABILITIES),
        "",
        "A family is config.json's model_type. Any model of one works, fine-tunes too.",
        "next:",
        "  edgepack models FAMILY                   its models; why something does not work",
        "  edgepack init MODEL --device phone-4gb   a recipe for one",
    ]


def _details(family: Family) -> list[str]:
    """A family's models, and why something does not work."""
    from edgepack.catalogue.families import CAPABILITIES

    lines = []
    for one in CAPABILITIES:
        if reason := family.answers[one.key]:
            lines += textwrap.wrap(f"{one.title}: {reason}", 79, subsequent_indent="  ")
    lines += [""] if lines else []
    width = max((len(model.size) for model in family.models), default=0)
    return [*lines, *(f"{model.size:>{width}}  {model.name}" for model in family.models)]
