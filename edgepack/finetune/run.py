"""Training on a finished folder: the stage alone, and its result put into the folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from edgepack.adapters.base import PackedBase
from edgepack.core.adapters import ABOUT, place
from edgepack.core.disk import clean, sync_tree
from edgepack.core.executor import Threads
from edgepack.core.progress import Steps
from edgepack.core.tables import format_size
from edgepack.core.untrusted import quote, shorten
from edgepack.errors import EdgepackError, RecipeError
from edgepack.finetune.stage import RESULT, make
from edgepack.recipe.read import parse
from edgepack.recipe.training import Finetune


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
def run(folder: Path, options: Mapping[str, Any], *, force: bool = False) -> Steps[Tuned]:
    """Train an adapter of the output folder `folder`; see `edgepack.finetune.finetune`."""
    section = read_options(options)
    base = PackedBase.open(folder)
    stage = make(section, Path(), finished=base)
    out = place(folder, stage.adapter_name)
    _check_place(out, force=force)
    stage.prepare()
    clean()
    yield from stage.complete(Threads())
    _publish(stage.folder, list(stage.files()), out)
    stage.drop()
    return Tuned(out, json.loads((out / RESULT).read_text(encoding="utf-8")))


def read_options(options: Mapping[str, Any]) -> Finetune:
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
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise RecipeError(f"--set {quote(setting)}: no value of YAML") from None
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


def _publish(stage: Path, names: Sequence[str], out: Path) -> None:
    """Put files in their place: whole, or not at all."""
    working = out.with_name(f".{out.name}.new")
    shutil.rmtree(working, ignore_errors=True)  # of a killed run
    for name in names:
        (working / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(stage / name, working / name)
    sync_tree(working)
    if out.exists():
        replaced = out.with_name(f".{out.name}.old")
        shutil.rmtree(replaced, ignore_errors=True)
        out.rename(replaced)
        working.rename(out)
        shutil.rmtree(replaced)
    else:
        working.rename(out)
