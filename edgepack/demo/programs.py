"""The programs that answer and train, made for this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgepack.devices.local import Local
from edgepack.errors import EdgepackError
from edgepack.native.build import PROGRAMS, Program, make_program, program_path
from edgepack.native.source import Say
from edgepack.native.toolchains import HOST, Host
from edgepack.native.variants import choose_variant


@dataclass(frozen=True)
class Programs:
    """Where the programs are; `missing` says why one is not there."""

    paths: Mapping[Program, Path]
    missing: Mapping[Program, str] = field(default_factory=dict)

    def can(self, program: Program) -> bool | str:
        """Whether a program is there, or why not."""
        return True if program in self.paths else self.missing[program]


def make_programs(say: Say) -> Programs:
    """The programs for this machine, compiled if they are not in the cache: a minute with the
    system's compiler and the installed llama-cpp-python, else some minutes with zig.

    Raises `EdgepackError` if even the one that answers cannot be made.
    """
    variant = HOST if Host.is_usable() else choose_variant(Local().describe())
    paths: dict[Program, Path] = {}
    missing: dict[Program, str] = {}
    for program in sorted(PROGRAMS, key=lambda name: name != "chat"):
        try:
            if not program_path(program, variant).is_file():
                say(f"compiling edgepack-{program}, once")
            paths[program] = make_program(program, variant, jobs=os.cpu_count() or 1, say=say)
        except EdgepackError as error:
            if program == "chat":
                raise EdgepackError(
                    f"the program that answers cannot be made: {error.message}",
                    hint="install a C++ compiler and edgepack[llama], or edgepack[devices]",
                ) from error
            missing[program] = error.message
            say(f"no edgepack-{program}: {error.message}")
    return Programs(paths, missing)
