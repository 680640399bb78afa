"""Training on a finished folder: the stage alone, and its result put into the folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgepack.adapters.base import PackedBase
from edgepack.core.accelerator import CPU
from edgepack.core.adapters import ABOUT, place
from edgepack.core.disk import clean, lock_of, locked, sync, sync_tree, writing_to
from edgepack.core.executor import Threads
from edgepack.core.progress import Steps
from edgepack.core.results import handing_over, settle
from edgepack.core.tables import format_size
from edgepack.core.untrusted import quote, shorten
from edgepack.errors import EdgepackError, RecipeError
from edgepack.finetune.stage import RESULT, Finetune, make
from edgepack.recipe import plain_yaml
from edgepack.recipe.read import parse
from edgepack.recipe.training import Finetune as Options


@dataclass(frozen=True)
class Tuned:
    """A trained adapter: its folder, and what the run did."""

    folder: Path
    result: Mapping[str, Any]

    def lines(self) -> list[str]:
        """For a terminal."""
        result = self.result
        losses, looks = result["curve"]["losses"], result["curve"]["held_out"]
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        lines = [
            f"{self.folder}  {format_size(size)}",
            f"  loss           {losses[0]:.3f} → {losses[-1]:.3f} in {len(losses)} steps",
        ]
        if looks:
            best = min(looks, key=lambda look: look[1])
            lines.append(f"  held out       {looks[0][1]:.3f} → {best[1]:.3f}")
        lines += [
            f"  general text   KL {result['general']['kl']:.4f} nats a token to the untuned model, "
            f"{result['general']['same_top1']:.0%} of the likeliest tokens the same",
            f"  speed, memory  {result['tokens_per_second']:.0f} tokens/s, "
            f"{format_size(result['peak_memory'])}",
        ]
        if result["skipped"]:
            lines.append(f"  skipped        {len(result['skipped'])} rows, see report.md")
        if result["note"]:
            lines.append(f"  note           {result['note']}")
        home, name = self.folder.parent.parent, self.folder.name
        return [*lines, "", f"edgepack chat {home} --adapter {name}"]


@torch.no_grad()
def run(
    folder: Path, options: Mapping[str, Any], *, force: bool = False, device: torch.device = CPU
) -> Steps[Tuned]:
    """Train an adapter of the output folder `folder`; see `edgepack.finetune.finetune`."""
    section = read_options(options)
    base = PackedBase.open(folder)
    stage = make(section, Path(), finished=base, device=device)
    out = place(folder, stage.adapter_name)
    clean()
    with _own(out):
        _check_place(out, force=force)
        stage.prepare()
        with stage.in_use():
            yield from stage.complete(Threads())
            working = _copy(stage, out)
        with handing_over([stage.result], working, out):
            _publish(working, out)
    return Tuned(out, json.loads((out / RESULT).read_text(encoding="utf-8")))


def read_options(options: Mapping[str, Any]) -> Options:
    """The section `finetune` of a recipe, from its keys."""
    given = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in options.items()
        if value is not None
    }
    section = parse({"finetune": given}).finetune
    assert section is not None
    return section


def pairs(settings: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` as they are given on a command line; values as in YAML."""
    found: dict[str, Any] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign:
            raise RecipeError(f"--set {quote(setting)}: is not KEY=VALUE", hint="--set r=16")
        try:
            found[key.strip()] = plain_yaml.parse(value, "the value")
        except RecipeError as error:
            message = f"--set {quote(setting)}: {error.message}"
            raise RecipeError(message, hint="--set r=16") from None
    return found


def _check_place(out: Path, *, force: bool) -> None:
    if not out.exists():
        return
    if not (out / ABOUT).is_file():
        raise EdgepackError(
            f"{shorten(str(out), 120)}: exists, and is no adapter of edgepack",
            hint="--name NAME writes elsewhere",
        )
    if not force:
        raise EdgepackError(
            f"{shorten(str(out), 120)}: exists",
            hint="--name NAME writes elsewhere, --force replaces it",
        )


@contextmanager
def _own(out: Path) -> Iterator[None]:
    """Write `out` alone, once what a killed process left of writing it is finished or removed."""
    name = hashlib.sha256(os.fsencode(out.resolve())).hexdigest()[:16]
    with locked(lock_of(f"adapter-{name}")) as mine:
        if not mine:
            raise EdgepackError(
                f"{shorten(str(out), 120)}: another edgepack is writing it",
                hint="wait for it to end; --name NAME writes elsewhere",
            )
        working, replaced = _aside(out)
        if replaced.exists() and not out.exists():  # killed between the two renames
            working.rename(out)
        for leftover in (working, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
        settle()  # it is published now, or gone
        yield


def _aside(out: Path) -> tuple[Path, Path]:
    """Beside an adapter: the new one, and the one whose place it takes."""
    return out.with_name(f".{out.name}.new"), out.with_name(f".{out.name}.old")


def _copy(stage: Finetune, out: Path) -> Path:
    """The files of a stage on the disk of `out`, under another name."""
    working, _ = _aside(out)
    with writing_to(out):
        for name in stage.files():
            (working / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(stage.folder / name, working / name)
        sync_tree(working)
    return working


def _publish(working: Path, out: Path) -> None:
    """Give what was copied its name: the old adapter or the new one is whole at every moment."""
    _, replaced = _aside(out)
    if out.exists():
        out.rename(replaced)
    working.rename(out)
    sync(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)
