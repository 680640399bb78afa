"""The files of an adapter: written for every runtime of its base, and read from all of them.

``DIR/adapters/NAME/`` holds adapter.gguf for llama.cpp or a file for ONNX graphs, ``peft/`` for
PEFT, and adapter.json, which names the base and the files' sha256. ΔW lies on top of Q + L·R. Where
only L and R were changed, factors.gguf holds the new ones, which take the old ones' place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from edgepack.adapters import gguf, onnx, peft
from edgepack.adapters.adapter import Adapter, BaseId, Lora
from edgepack.adapters.base import GGUF, ONNX, PackedBase
from edgepack.adapters.gguf import TYPES, Dtype
from edgepack.checkpoint import Checkpoint
from edgepack.checkpoint.peft import CONFIG, WEIGHTS
from edgepack.checkpoint.values import pair_from_hf, pair_to_hf
from edgepack.core.adapters import (
    ABOUT,
    FILE,
    TUNED,
    check_files,
    check_name,
    find,
    listed,
    place,
    read_about,
    write_about,
)
from edgepack.core.untrusted import shorten
from edgepack.errors import EdgepackError
from edgepack.export.peft import write_pairs

__all__ = ["check_name", "find", "listed", "place", "read", "write"]

PEFT = "peft"
NAME, DIGEST = "edgepack.base.name", "edgepack.base.digest"
"""Keys of the base in the metadata of GGUF and safetensors."""
README = """\
---
library_name: peft
---
LoRA adapter for **{name}** as packed by edgepack (base digest `{digest}`).

It belongs on top of the packed model's weights Q + L·R, not on the original model's: load the
dequantized base, add the factors, then `PeftModel.from_pretrained(model, FOLDER)`. With edgepack:
`edgepack chat DIR --adapter NAME`. Ranks {ranks}; alpha / rank is 1, its scale is in lora_B.
"""


def write(
    folder: Path,
    adapter: Adapter,
    base: PackedBase,
    *,
    dtype: Dtype = "f16",
    trained: Mapping[str, gguf.Pair] | None = None,
) -> dict[str, Path]:
    """Write the adapter's files into `folder`; name → path of each. Values are rounded to `dtype`.
    `trained` are L and R of all weights that have any, where they themselves were trained, in the
    formats that they keep.
    adapter.json comes last: without it the adapter is not whole."""
    identity = base.identity
    if adapter.base.digest != identity.digest:
        raise _another(str(folder), adapter.base, base)
    _check_weights(adapter, base.matrices)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ABOUT).unlink(missing_ok=True)
    loras = {name: lora.balanced() for name, lora in adapter.weights.items()}
    marks = {NAME: identity.name, DIGEST: identity.digest}
    files = _write_peft(folder / PEFT, loras, base.checkpoint, marks, dtype)
    if base.target == GGUF:
        files[FILE] = gguf.write(folder / FILE, loras, base.checkpoint, marks, dtype)
        if tuned := trained or gguf.tuned(loras, base, dtype):
            files[TUNED] = gguf.write_tuned(folder / TUNED, tuned, base.checkpoint, marks)
    if base.target == ONNX:
        path = onnx.write(folder, loras, base, marks)
        files[path.name] = path
    about = dict(adapter.about)
    described = {
        "base": {"name": identity.name, "digest": identity.digest},
        "mode": str(about.pop("mode", "stack")),
        "lora_alpha": about.pop("lora_alpha", None),
        "ranks": {name: lora.rank for name, lora in loras.items()},
        "about": about,
    }
    return files | {ABOUT: write_about(folder, described, files)}


def read(path: Path, base: PackedBase) -> Adapter:
    """An adapter from a folder that `write` wrote, from a GGUF adapter or PEFT folder of anybody's.
    One of another base is refused; `Adapter.notes` says what is only doubtful."""
    shown = shorten(str(path), 120)
    about: dict[str, Any] = {}
    if (path / ABOUT).is_file():
        described = read_about(path)
        _check_base(shown, described.belongs_to, base)
        check_files(path, described)
        about = {**described.about, "mode": described.mode, "lora_alpha": described.lora_alpha}
        path = path / (FILE if FILE in described.files else PEFT)
    metadata: Mapping[str, object]
    if (path / CONFIG).is_file():
        stored_pairs, metadata = peft.read(path, base.matrices)
        weights = {
            name: Lora(*pair_from_hf(base.checkpoint, name, lora.lora_A, lora.lora_B))
            for name, lora in stored_pairs.items()
        }
    elif path.is_file() and base.target == GGUF:
        weights, metadata = gguf.read(path, base.checkpoint)
    else:
        raise EdgepackError(
            f"{shown}: is no adapter",
            hint="give a folder of DIR/adapters, a PEFT folder, or for a GGUF base a GGUF adapter",
        )
    stored = _stored_base(metadata)
    notes = _check_base(shown, stored, base)
    adapter = Adapter(weights, base.identity, about, notes)
    _check_weights(adapter, base.matrices)
    return adapter


def _check_weights(adapter: Adapter, matrices: Mapping[str, tuple[int, int]]) -> None:
    """Refuse an adapter without pairs, or with one for what no adapter can change."""
    if not adapter.weights:
        raise EdgepackError("the adapter changes no weight", hint="train it again")
    for name, lora in adapter.weights.items():
        shape = (lora.lora_B.shape[0], lora.lora_A.shape[1])
        if matrices.get(name) != shape or lora.lora_B.shape[1] != lora.rank:
            raise EdgepackError(
                f"the adapter's {shorten(name, 80)} {list(shape)} is no weight of this model",
                hint="the adapter was made for another model",
            )


def _write_peft(
    folder: Path,
    loras: Mapping[str, Lora],
    base: Checkpoint,
    marks: Mapping[str, str],
    dtype: Dtype,
) -> dict[str, Path]:
    """The PEFT folder; name in the adapter's folder → path."""

    def pair(name: str) -> tuple[Tensor, Tensor]:
        return pair_to_hf(base, name, loras[name].lora_A, loras[name].lora_B)

    write_pairs(folder, loras, pair, base=marks[NAME], dtype=TYPES[dtype], about=marks)
    ranks = sorted({lora.rank for lora in loras.values()})
    text = README.format(
        name=marks[NAME], digest=marks[DIGEST][:12], ranks=", ".join(map(str, ranks))
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    names = (CONFIG, WEIGHTS, "README.md")
    return {f"{folder.name}/{name}": folder / name for name in names}


def _stored_base(metadata: Mapping[str, object]) -> BaseId | None:
    """The base that a file names, if it names one."""
    name, digest = metadata.get(NAME), metadata.get(DIGEST)
    return BaseId(str(name), str(digest)) if digest is not None else None


def _check_base(shown: str, stored: BaseId | None, base: PackedBase) -> tuple[str, ...]:
    """Refuse another base; notes about what is doubtful."""
    if stored is None:
        return (f"{shown}: does not say which base it was trained on; its shapes fit this one",)
    if stored.digest != base.identity.digest:
        raise _another(shown, stored, base)
    if stored.name != base.name:
        name = shorten(stored.name, 80)
        return (f"{shown}: calls its base {name}, not {base.name}; the files are the same",)
    return ()


def _another(shown: str, stored: BaseId, base: PackedBase) -> EdgepackError:
    ours, theirs = base.identity.digest[:12], shorten(stored.digest, 13)
    return EdgepackError(
        f"{shown}: was made for {shorten(stored.name, 80)} ({theirs[:12]}), "
        f"not for the files in {shorten(str(base.folder), 80)} ({ours})",
        hint="use it with the folder that it was trained on, or train it again on this one",
    )
