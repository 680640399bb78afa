"""What reads the files of a case: the commands that a user gives, and what they call."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz.harness import Refused, command

if TYPE_CHECKING:
    from edgepack.checkpoint import Checkpoint


def plan_and_open(recipe: str, model: str, folder: Path) -> None:
    """`edgepack plan`, then what `build` reads before its first long stage: tokenizer, metadata,
    all tensors, a few tokens through the model."""
    from edgepack.checkpoint import open_checkpoint

    command("plan", str(folder / recipe))
    checkpoint = open_checkpoint(model, folder)
    checkpoint.gguf_metadata()
    checkpoint.generation_config()
    for name in checkpoint.specs:
        checkpoint.tensor(name)
    _through(checkpoint)


def _through(checkpoint: Checkpoint) -> None:
    """A few tokens through the model."""
    import torch

    from edgepack.model.decoder import Decoder

    with torch.no_grad():
        Decoder(checkpoint).logits(torch.arange(8)[None])


def calibration_text(folder: Path) -> None:
    """The calibration's text from a JSONL, as `build` reads it after planning."""
    from edgepack.calibration import text
    from edgepack.checkpoint import open_checkpoint
    from edgepack.recipe.read import load

    command("plan", str(folder / "chats.yaml"))
    recipe = load(folder / "chats.yaml")
    model = open_checkpoint("m", folder)
    text.read_tokens(model, recipe.calibrate, folder / recipe.calibrate.source)


def template_renders(folder: Path) -> None:
    """Rows of chats through the template, and the openings of chats that models write."""
    from edgepack.calibration.self_text import chat_script
    from edgepack.checkpoint import open_checkpoint

    calibration_text(folder)
    chat_script(open_checkpoint("m", folder).tokenizer)


def chat(name: str, folder: Path) -> None:
    """One token of an answer, through the runtime."""
    command("chat", str(folder / name), "--prompt", "Hi", "--max-tokens", "1", "--context", "64")


def show_and_chat(folder: Path) -> None:
    """Both look at the manifest."""
    command("show", str(folder / "out-gguf"))
    chat("out-gguf", folder)


def show_recipe(folder: Path) -> None:
    """Read it, and plan it."""
    command("show", str(folder / "recipe.yaml"))
    command("plan", str(folder / "recipe.yaml"))


def plan_for_device(folder: Path) -> None:
    """A recipe for the device of a profile, with formats of its own and for a size."""
    for name in ("quick", "share"):
        command("plan", str(folder / f"{name}.yaml"), "--device-profile", f"{folder}/bench.json")


def compare_benchmarks(folder: Path) -> None:
    """A benchmark beside itself."""
    command("bench", "--compare", str(folder / "bench.json"), str(folder / "bench.json"))


def show_and_plan_gguf(folder: Path) -> None:
    """A model of others, as a source."""
    command("show", str(folder / "m.gguf"))
    plan_and_open("gguf.yaml", "m.gguf", folder)


def show_and_chat_adapter(folder: Path) -> None:
    """Factors beside the base."""
    command("show", str(folder / "out-gguf/factors.gguf"))
    chat("out-gguf", folder)


def adapter(folder: Path) -> None:
    """A user's adapter: its files one by one, as those of others, and then as a whole."""
    from edgepack.adapters import files
    from edgepack.adapters.base import PackedBase

    command("show", str(folder / "out-gguf"))
    base, place = PackedBase.open(folder / "out-gguf"), folder / "out-gguf/adapters/notes"
    for path in (place / "adapter.gguf", place / "peft", place):
        files.read(path, base)


def adapter_of_graph(folder: Path) -> None:
    """An adapter beside the factors of a graph."""
    from edgepack.runtimes.models import Model

    place = folder / "out-onnx"
    path = place / "adapters/notes/peft/adapter_model.safetensors"
    model = replace(Model.from_path(place), adapters=((path, 1.0),))
    with model.open(64) as runtime:
        runtime.logits([1, 2, 3])


def graph_read_back(folder: Path) -> None:
    """An ONNX folder as a checkpoint: every weight, and a few tokens through the model."""
    from edgepack.export.onnx_checkpoint import OnnxCheckpoint

    checkpoint = OnnxCheckpoint(folder / "out-onnx")
    for name in checkpoint.formats:
        checkpoint.weight(name)
    _through(checkpoint)


def training_step(folder: Path) -> None:
    """Two steps with a training graph, the second with the state of the first."""
    from edgepack.core.progress import finish
    from edgepack.finetune.graph.runner import read_factors, train

    rows = [([5, 6, 7], [6, 7, -100])]
    state = folder / "training/state.safetensors"
    finish(train(folder / "training", rows, steps=2, rate=1e-3, state_file=state, threads=1))
    read_factors(folder / "training/factors.safetensors")


# ---------------------------------------------------------------------------- merges, adapters


def command_with_table(*arguments: str) -> None:
    """A command that says what is wrong in a table of its own, and so is no error."""
    try:
        command(*arguments)
    except Refused as refused:
        if "error:" in refused.args[0]:
            raise  # the other lines are progress


def check_merge(folder: Path) -> None:
    """`edgepack merge --check`, and the plan of the merge."""
    from edgepack.merge.documents import plan_merges
    from edgepack.merge.stage import Options
    from edgepack.recipe.read import load_merges

    command_with_table("merge", str(folder / "merge.yaml"), "--check")
    plan_merges(load_merges(folder / "merge.yaml"), folder, Options()).memory()


def plan_tuned(folder: Path) -> None:
    """A model with an adapter in it: planned, and its weights read."""
    from edgepack.model.open import open_model
    from edgepack.recipe.read import load

    command("plan", str(folder / "tuned.yaml"))
    model = open_model(load(folder / "tuned.yaml").model, folder)
    for name in model.specs:
        model.tensor(name)


def training_data(folder: Path) -> None:
    """Examples of both kinds of files, with rows that are skipped and without."""
    from edgepack.checkpoint import open_checkpoint
    from edgepack.finetune.examples import read_examples

    model = open_checkpoint("m", folder)
    for name in ("few.jsonl", "few.json"):
        read_examples(folder / name, model, 256, skip=True)
        read_examples(folder / name, model, 256)


def plan_family(folder: Path) -> None:
    """The configuration of a family that ``family`` names, in a plan."""
    from edgepack.checkpoint import open_checkpoint

    name = folder / "family"
    family = name.read_text() if name.is_file() else "gemma2"
    checkpoint = open_checkpoint(f"families/{family}", folder)
    checkpoint.gguf_metadata()
    for name in checkpoint.specs:
        checkpoint.tensor(name)
    _through(checkpoint)


# ---------------------------------------------------------------------------- whole folders


def init(folder: Path) -> None:
    """A recipe for a model and a device."""
    out = folder.parent / "home/recipe.yaml"
    out.parent.mkdir(exist_ok=True)
    device = str(folder / "bench.json")
    command("init", str(folder / "m"), "--device", device, "--out", str(out), "--force")


def push(folder: Path) -> None:
    """All that is looked at before something is uploaded."""
    for name in ("out-gguf", "out-onnx", "out-gguf/adapters/notes"):
        command("push", str(folder / name), "me/x", "--dry-run")


def verify(folder: Path) -> None:
    """All that `edgepack verify` looks at."""
    for name in ("out-gguf", "out-onnx"):
        command_with_table("verify", str(folder / name))


def located_recipe(folder: Path) -> None:
    """The recipe of an output folder, as `evaluate` and `compare` take it up again."""
    from edgepack.core.artifact import Artifact
    from edgepack.output.provenance import located

    located(Artifact.open(folder / "out-gguf"))


def cache(folder: Path) -> None:
    """Finished stages of a cache that somebody changed: found whole, and read."""
    import edgepack
    from edgepack.allocate.costs import load_costs
    from edgepack.core.weight_files import load_imatrix, load_weight
    from edgepack.grids.find import load_grids

    copied = Path(os.environ["EDGEPACK_CACHE"])
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(folder / "cache", copied)
    command("cache", "ls")
    command_with_table("cache", "verify")
    plan = edgepack.plan(folder / "sized.yaml", "gguf")
    for stage in plan.stages:
        if not stage.is_whole():
            continue
        if stage.name == "grids":
            load_grids(plan.model, stage.folder)
        for path in sorted(stage.folder.glob("*.weight.*")):
            if stage.name == "decompose":
                load_weight(stage.folder, path.stem)
                load_imatrix(stage.folder, path.stem)
            elif stage.name == "allocate":
                load_costs(stage.folder, path.stem)
