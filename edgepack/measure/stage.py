"""Perplexity, KL and top-1 of the files just written, through their runtime, beside stock's.

The reference is the original as float16. The peers of a GGUF are stock quantizations of the same
model with an imatrix of the same calibration tokens: in the very types of ours, and in the uniform
type whose file comes nearest in size (all of them where sizes tie). That of an ONNX graph is plain
rounding in the very types of ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from edgepack.calibration.text import read
from edgepack.core.artifact import digest
from edgepack.core.disk import atomic, scratch
from edgepack.core.errors import EdgepackError, ExportError
from edgepack.core.progress import Progress, Steps
from edgepack.core.stage import Stage
from edgepack.core.untrusted import read_json
from edgepack.core.weight_files import load_imatrix
from edgepack.measure.baselines import peers, write_plain_onnx, write_stock
from edgepack.metrics.divergence import CHUNK, compare, divergence
from edgepack.metrics.text import HELD_OUT, Text
from edgepack.model.stream import Tokens
from edgepack.planning.plan import Plan
from edgepack.recipe.texts import MEASURED, source_path
from edgepack.runtimes.agreement import agreement
from edgepack.runtimes.base import Scorer
from edgepack.runtimes.models import RUNTIMES, Library, Model, write_original, written
from edgepack.runtimes.torch_decoder import TorchDecoder


def verify(made: Plan, folder: Path) -> Steps[None]:
    """The files just written, in their runtime: it loads them, and reads text as the model does.
    Nothing where the runtime is not installed."""
    if find_spec(RUNTIMES[made.target].module) is None:
        return
    yield Progress("export", 0, 1, "the files in their runtime")
    with written(made.target, folder).open(VERIFIED_CONTEXT) as runtime:
        agreement(runtime, made.dense.checkpoint.tokenizer)


VERIFIED_CONTEXT = 64
RESULT = "measured.json"
CHECKED = 64
"""Tokens that the original's predictions are checked on."""
SAME = 0.01
"""Mean KL, in nats a token, up to which two programs compute the same; f16's rounding is 1e-4."""


def measure(
    made: Plan, folder: Path, weights: Path | None, tokens: Tokens | None
) -> Steps[dict[str, Any]]:
    """What the manifest says under ``measured``: metrics by candidate, or why there are none.

    `folder` has the files to measure, `weights` is the decompose stage they come from; without one
    it holds a checkpoint, measured with our own forward pass. A stage: what a killed run measured
    is kept, chunk by chunk.
    """
    options = made.recipe.export.measure
    if not options.tokens:
        return {"skipped": "export.measure.tokens is 0"}
    library = RUNTIMES[made.target]
    if find_spec(library.module) is None:
        how = f"pip install 'edgepack[{library.extra}]'"
        return {"skipped": f"{library.package} is not installed ({how})"}
    if tokens is None and options.text is None:
        return {"skipped": "nothing was calibrated and export.measure.text is not set"}
    text = text_of(made, tokens)
    stage = _stage(made, folder, text, library)
    if not stage.is_whole():
        with stage.writing() as kept:
            found = yield from _measure(made, folder, weights, text, kept)
            with atomic(kept / RESULT) as temporary:
                temporary.write_text(json.dumps(found), encoding="utf-8")
            for path in kept.glob(f"{CHUNK}*"):
                path.unlink()
    measured: dict[str, Any] = read_json(stage.folder / RESULT)
    return measured


def _stage(made: Plan, folder: Path, text: Text, library: Library) -> Stage:
    """The measurement of the files in `folder`: those very files, through that very runtime."""
    written = (p for p in sorted(folder.rglob("*")) if p.is_file())
    options = {
        **made.recipe.export.measure.model_dump(exclude={"text"}),
        "target": made.target,
        "runtime": version(library.package),
        "onnx": made.recipe.export.onnx.model_dump() if made.target == "onnx" else None,
        "text": text.digest,
        "files": {p.relative_to(folder).as_posix(): digest(p)["sha256"] for p in written},
        "peers": peers(made) if _has_peers(made) and made.target == "gguf" else None,
    }
    inputs = (made.decompose.key, made.checkpoint.key, made.dense.checkpoint.key)
    return Stage("measure", ("edgepack.measure.stage", "edgepack.formats"), options, inputs)


def _has_peers(made: Plan) -> bool:
    return made.recipe.export.measure.stock and made.recipe.compress is not None


def _measure(
    made: Plan, folder: Path, weights: Path | None, text: Text, kept: Path
) -> Steps[dict[str, Any]]:
    """Write what to compare with, for as long as it takes, and compare."""
    options = made.recipe.export.measure
    if weights is None:
        dense, own = (TorchDecoder(d, options.context) for d in (made.dense, made.decoder))
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        one = {"edgepack": own}
        return (yield from _compare(made, text, dense, one, {"edgepack": size}, kept))
    with scratch() as temporary:
        reference = yield from write_original(made.target, made.dense.checkpoint, temporary)
        kl = yield from _check_reference(made, reference, text)
        models = [written(made.target, folder)]
        if _has_peers(made) and made.target == "onnx":
            models += yield from _onnx_peers(made, temporary)
        elif _has_peers(made):
            models += yield from _stock(made, weights, temporary)
        found = yield from compare_files(made, text, reference, models, kept)
        return found | {"reference_kl": kl}


def _check_reference(made: Plan, reference: Path, text: Text) -> Steps[float]:
    """The mean KL of the original as written from what our own reading of it predicts. A fault of
    the conversion would be in the packed files as well, and no KL between the two could see it."""
    yield Progress("measure", 0, 1, "the original, as it was read and as it was written")
    context = made.recipe.export.measure.context
    with Model("", reference).open(context) as runtime:
        tokens = text.chunks(runtime, context, context)[0]
        window = made.dense.dimensions.sliding_window
        tokens = tokens[: min(CHECKED, window or CHECKED)]
        own = made.dense.logits(torch.from_numpy(tokens[:-1]).unsqueeze(0))[0]
        written = runtime.logits(tokens[:-1].tolist())
    kl = float(compare(own.numpy(), written, tokens[1:]).kl.mean())
    if not kl < SAME:
        raise ExportError(
            f"the file for {made.target} does not compute what the model does: mean KL {kl:.3g} "
            f"over {len(tokens) - 1} tokens, already as f16",
            hint="please report it, with the model's config.json; nothing was written",
        )
    return kl


def _stock(made: Plan, weights: Path, folder: Path) -> Steps[list[Model]]:
    models = []
    for number, (name, formats) in enumerate(peers(made).items()):
        yield Progress("measure", 0, 1, name)
        path = folder / f"stock-{number}.gguf"
        write_stock(made, partial(load_imatrix, weights), formats, path)
        models.append(Model(name, path))
    return models


def _onnx_peers(made: Plan, folder: Path) -> Steps[list[Model]]:
    formats = {name: choice.format for name, choice in made.choices.items()}
    path = yield from write_plain_onnx(made, formats, folder / "plain", "measure")
    return [Model("plain rounding, same types", path)]


def compare_files(
    made: Plan,
    text: Text,
    reference: Path,
    models: Sequence[Model],
    kept: Path | None = None,
) -> Steps[dict[str, Any]]:
    """Metrics of models against the reference, on what the recipe says; see `divergence` for
    `kept`."""
    context = made.recipe.export.measure.context
    with ExitStack() as stack:
        original = stack.enter_context(Model("", reference).open(context))
        opened = {m.name: stack.enter_context(m.open(context)) for m in models}
        sizes = {m.name: m.bytes for m in models}
        return (yield from _compare(made, text, original, opened, sizes, kept))


def _compare(
    made: Plan,
    text: Text,
    reference: Scorer,
    models: Mapping[str, Scorer],
    sizes: Mapping[str, int],
    kept: Path | None,
) -> Steps[dict[str, Any]]:
    options, context = made.recipe.export.measure, made.recipe.export.measure.context
    chunks = text.chunks(reference, context, options.tokens)
    found = yield from divergence(reference, models, chunks, kept)
    return {
        "text": text.name,
        "tokens": int(chunks.size),
        "context": context,
        "results": {name: {"bytes": sizes[name], **found[name].as_dict()} for name in models},
    }


def text_of(made: Plan, tokens: Tokens | None) -> Text:
    """What the recipe says to measure on."""
    options = made.recipe.export.measure
    if options.text is not None:
        path = source_path(options.text, made.base, MEASURED)
        return Text(path.name, read(path, MEASURED, sha256=made.texts.get(MEASURED)))
    if tokens is None:
        raise EdgepackError("nothing was calibrated, so that no text is held out")
    return Text(HELD_OUT, tokens.held_out)
