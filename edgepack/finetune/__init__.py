"""Train L and R of a packed model, or an adapter on top of them, on a person's own examples.

Takes an output folder and rows of examples; gives an adapter and what it does to held-out examples
and to general text. Q stays packed, and nothing leaves the machine. May import ``adapters`` and
everything below.

>>> from edgepack.finetune import finetune
>>> tuned = finetune("model-gguf", data="notes.jsonl", steps=60)  # doctest: +SKIP
>>> tuned.folder  # doctest: +SKIP
PosixPath('model-gguf/adapters/notes')
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepack.core.progress import Progress
    from edgepack.finetune.run import Tuned

__all__ = ["finetune"]


def finetune(
    folder: str | Path,
    *,
    force: bool = False,
    device: str = "cpu",
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Tuned:
    """Train an adapter of an output folder; it is written into ``FOLDER/adapters/NAME``.

    `options` are the keys of a recipe's section ``finetune`` (`recipe.training.Finetune`), of which
    ``data`` must be given. An adapter of that name is replaced only with `force`. `device` is where
    this machine computes (see `edgepack.build`). `progress` hears what is being done. A killed run
    goes on where it stopped.
    """
    from edgepack.core import accelerator
    from edgepack.core.progress import finish
    from edgepack.finetune.run import run

    chosen = accelerator.choose(device)
    return finish(run(Path(folder), options, force=force, device=chosen), progress)
