"""edgepack-tune beside `edgepack.finetune`: the same packed files, rows, first values in both."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import torch

from edgepack.adapters.base import PackedBase
from edgepack.checkpoint import gguf_rows
from edgepack.finetune import trained as trained_module
from edgepack.finetune.arithmetic import Float32
from edgepack.finetune.examples import Example, read_examples
from edgepack.finetune.frozen import FrozenModel
from edgepack.finetune.training import Data, Run
from edgepack.recipe.training import Finetune

ROWS = [
    {"prompt": "What is my dog called?", "completion": "Biscuit, of course."},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "the quick brown fox"},
            {"role": "assistant", "content": "jumps"},
            {"role": "user", "content": "over"},
            {"role": "assistant", "content": "the lazy dog, and then it's time to rest."},
        ]
    },
    {"text": "Pack my box with five dozen liquor jugs."},
]


@dataclass
class Tuning:
    """A request of edgepack-tune for a packed base, and the same run in Python."""

    base: PackedBase
    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    mode: str = "stack"
    rows: list[Any] = field(default_factory=lambda: list(ROWS))
    replay: list[list[int]] = field(default_factory=list)

    def request(self, **more: Any) -> dict[str, Any]:
        """Fields of `train`, `plan` and `gradient`."""
        fields: dict[str, Any] = {
            "model": str(self.base.file),
            "factors": str(self.base.factors) if self.base.factors else None,
            "mode": self.mode,
            "examples": self.rows,
            "out": str(self.folder / "adapter.gguf"),
            "state": str(self.folder / "state"),
            "options": self.options,
            "threads": 1,
        }
        if self.replay:
            path = self.folder / "replay.json"
            path.write_text(json.dumps({"version": 1, "texts": self.replay}))
            fields["replay"] = str(path)
        return fields | more

    def run(self) -> Run:
        """The run in Python, with its own first values."""
        data = self.folder / "rows.jsonl"
        data.write_text("\n".join(map(json.dumps, self.rows)))
        options = Finetune(data=str(data), mode=self.mode, held_out=0, **self.options)
        names = trained_module.targets(self.base.checkpoint, options)
        learnt = read_examples(data, self.base.checkpoint, options.sequence_length).examples
        replay = [Example(torch.tensor(t[:-1]), torch.tensor(t[1:])) for t in self.replay]
        trained: trained_module.Trained
        if self.mode == "stack":
            trained = trained_module.Stack.start(self.base, names, options, {})
        else:
            trained = trained_module.Factors.start(self.base, names)
        model = FrozenModel(self.base.checkpoint, Float32())
        return Run(model, trained, Data(learnt, (), replay), options, self.folder / "python")

    def read(self, path: Path, end: str = "") -> dict[str, torch.Tensor]:
        """Tensors of a file of `gradient` by the name of a master, in Hugging Face's order."""
        checkpoint = self.base.checkpoint
        stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
        found = {}
        for name, spec in checkpoint.specs.items():
            stem = checkpoint.architecture.gguf_name(spec.role, spec.block)
            if f"{stem}.lora_a{end}" not in stored:
                continue
            A, B = (torch.tensor(stored[f"{stem}.lora_{part}{end}"]) for part in "ab")
            rows = gguf_rows(checkpoint.architecture, checkpoint.dimensions, spec.role)
            found[f"{name} lora_A"] = A
            found[f"{name} lora_B"] = B if rows is None else B[torch.argsort(rows)]
        return found


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖."""
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))
