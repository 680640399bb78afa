"""Write docs/help.md: what every command says about itself. Run after changing one."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from edgepack.cli import app

PAGE = Path(__file__).with_name("help.md")


def page() -> str:
    """The page as it should be."""
    found = [command.callback for command in app.registered_commands]
    commands = [function.__name__.replace("_", "-") for function in found if function]
    sections = [
        "# Commands",
        "",
        "Made by `docs/make_help.py`; a test compares it with the program.",
    ]
    for command in ([], *([name] for name in commands)):
        sections += ["", f"## {' '.join(['edgepack', *command])}", "", "```", _help(command), "```"]
    return "\n".join(sections) + "\n"


def _help(command: list[str]) -> str:
    runner = CliRunner(env={"COLUMNS": "80"})
    return runner.invoke(app, [*command, "--help"], prog_name="edgepack").stdout.rstrip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
