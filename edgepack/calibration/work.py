"""Who does the items of a sweep: this process, which keeps moments in memory, or an executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import safe_open
from torch import Tensor

from edgepack.calibration import experts, passes
from edgepack.calibration.gram import Gram
from edgepack.calibration.items import Item, Stack, Total
from edgepack.calibration.moments import OUT, Moments
from edgepack.calibration.side_by_side import Map, side_by_side
from edgepack.core.executor import Executor
from edgepack.core.weight_files import read_about, save_tensors
from edgepack.model.block import Block
from edgepack.model.decoder import Decoder, Head


@dataclass(frozen=True)
class Kind:
    """What items need in memory, and what is done with it."""

    load: Callable[[Decoder, Item], Any]
    run: Callable[[Any, Item, Map], Moments]


def _block(decoder: Decoder, item: Item) -> Block:
    return decoder.block(item.block).multiplying(item.options.products)


def _head(decoder: Decoder, item: Item) -> Head:
    return decoder.head().multiplying(item.options.products)


KINDS: Mapping[str, Kind] = {
    "forward": Kind(_block, passes.forward),
    "labels": Kind(_head, passes.labels),
    "backward": Kind(_block, passes.backward),
    "embedding": Kind(lambda decoder, _: decoder, passes.embedding),
}


class Workers(Protocol):
    """Does items of one kind, of all runs at one block."""

    def do(self, items: Sequence[Item], totals: Sequence[Total]) -> None:
        """Do the items, and write the totals of their moments."""
        ...


@dataclass(frozen=True)
class Here:
    """One item after the other, on all cores. Weights are read once; moments stay in memory."""

    decoder: Decoder

    def do(self, items: Sequence[Item], totals: Sequence[Total]) -> None:
        """What has no moments and is there is not done again."""
        missing = [item for item in items if item.stacks or not item.is_done]
        if not missing:
            return
        kind = KINDS[missing[0].kind]
        loaded, moments = kind.load(self.decoder, missing[0]), Moments()
        with side_by_side() as parts:
            for item in missing:
                moments.merge(kind.run(loaded, item, parts))
        del loaded
        for total in totals:
            _save(moments, total)


@dataclass(frozen=True)
class Elsewhere:
    """Items go to an executor; the moments of runs go through files."""

    executor: Executor

    def do(self, items: Sequence[Item], totals: Sequence[Total]) -> None:
        """What is there is not done again."""
        for _ in self.executor.map(do, [item for item in items if not item.is_done]):
            pass
        for _ in self.executor.map(add_up, totals):
            pass
        for total in totals:
            for path in total.parts:
                path.unlink()


def do(item: Item) -> None:
    """Do one item, and write the moments that it collects."""
    kind = KINDS[item.kind]
    with side_by_side() as parts:
        moments = kind.run(
            kind.load(Decoder(item.model, device=item.options.device), item), item, parts
        )
    for stack in item.stacks:
        write_moments(moments, stack, item)


def add_up(total: Total) -> None:
    """Add up the moments of all runs, and write the Hessians."""
    moments = Moments()
    for path in total.parts:
        _add(path, moments)
    _save(moments, total)


def _save(moments: Moments, total: Total) -> None:
    experts.draw_together(moments, total.stack)
    for name in total.stack:
        if total.rows is not None:
            moments.add_rows(name, total.rows)
        moments.save(total.path / name if total.path.is_dir() else total.path, name)


def write_moments(moments: Moments, stack: Stack, item: Item) -> None:
    """Write the moments of a stack as they are."""
    tensors: dict[str, Tensor] = {}
    for name in stack:
        for (role, held_out), gram in moments.sums.items():
            if role in (name, name + OUT):
                panels = enumerate(gram.panels)
                tensors |= {f"sums {held_out:d} {k} {role}": panel.cpu() for k, panel in panels}
        vectors = {"squares": moments.squares, "rows": moments.rows}
        tensors |= {f"{kind} {name}": v[name].cpu() for kind, v in vectors.items() if name in v}
    met = {f"{held_out:d} {name}": n for (name, held_out), n in moments.met.items()}
    about = {"tokens": list(moments.tokens.values()), "met": met}
    save_tensors(item.files.moments(item.block, stack, item.run), tensors, about)


def _add(path: Path, moments: Moments) -> None:
    """Add moments that were written, one tensor at a time."""
    found, about = Moments(), read_about(path)
    found.tokens = dict(zip((False, True), about["tokens"], strict=True))
    for key, count in about["met"].items():
        held_out, _, name = key.partition(" ")
        found.met[name, held_out == "1"] = count
    with safe_open(path, framework="pt") as file:
        for key in sorted(file.keys(), key=_order):
            kind, _, name = key.partition(" ")
            if kind != "sums":
                getattr(found, kind)[name] = file.get_tensor(key)
                continue
            held_out, k, name = name.split(" ", 2)
            panels = moments.sums.setdefault((name, held_out == "1"), Gram([])).panels
            if int(k) < len(panels):
                panels[int(k)].add_(file.get_tensor(key))
            else:
                panels.append(file.get_tensor(key))
    moments.merge(found)


def _order(key: str) -> tuple[str, int]:
    """Panels in the order of their rows."""
    kind, *rest = key.split(" ")
    return kind, int(rest[1]) if kind == "sums" else 0
