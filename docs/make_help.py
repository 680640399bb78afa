"""Write docs/help.md: what every command says about itself. Run after changing one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from typer import Typer
from typer.testing import CliRunner

from edgepack.cli import app

PAGE = Path(__file__).with_name("help.md")


def page() -> str:
    """The page as it should be."""
    sections = [
        "# Commands",
        "",
        "Made by `docs/make_help.py`; a test compares it with the program.",
    ]
    for command in ([], *_commands(app)):
        sections += ["", f"## {' '.join(['edgepack', *command])}", "", "```", _help(command), "```"]
    return "\n".join(sections) + "\n"


def _commands(within: Typer) -> Iterator[list[str]]:
    """The words of every command, those inside others too."""
    for command in within.registered_commands:
        assert command.callback
        yield [command.name or command.callback.__name__.replace("_", "-")]
    for group in within.registered_groups:
        assert group.name
        assert group.typer_instance
        yield [group.name]
        yield from ([group.name, *words] for words in _commands(group.typer_instance))


def _help(command: list[str]) -> str:
    runner = CliRunner(env={"COLUMNS": "80"})
    return runner.invoke(app, [*command, "--help"], prog_name="edgepack").stdout.rstrip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
