"""Perplexity, KL and top-1 of the files just written, through their runtime, beside stock's.

The reference is the original as float16. The peers of a GGUF are stock quantizations of the same
model with an imatrix of the same calibration tokens: in the very types of ours, and in the uniform
type whose file comes nearest in size (all of them where sizes tie). That of an ONNX graph is plain
rounding in the very types of ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgepack.artifact import MANIFEST, Artifact, digest
from edgepack.cache import Stage
from edgepack.calibration.text import Tokens, read, source_path
from edgepack.checkpoint import Checkpoint
from edgepack.choices import format_of, stock_formats
from edgepack.decompose.stage import load_imatrix
from edgepack.disk import atomic, scratch
from edgepack.errors import EdgepackError, ExportError, missing_extra
from edgepack.evaluate.divergence import CHUNK, chunk, compare, divergence
from edgepack.export.gguf import write_model, write_plain
from edgepack.planning import MEASURED, Plan
from edgepack.progress import Progress, Steps
from edgepack.recipe import Onnx
from edgepack.runtimes._base import Runtime, Scorer
from edgepack.runtimes.agreement import agreement
from edgepack.runtimes.ggml import requires_imatrix, stock_quantize
from edgepack.runtimes.llama_cpp import LlamaCpp
from edgepack.runtimes.onnx_runtime import OnnxRuntime, data_files, model_file
from edgepack.runtimes.torch_decoder import TorchDecoder
from edgepack.untrusted import read_json


class Library(NamedTuple):
    """What runs the files of a target: a module, the package that has it, our extra for that."""

    module: str
    package: str
    extra: str

    def check(self) -> None:
        """Refuse to go on without it."""
        if find_spec(self.module) is None:
            raise missing_extra(self.package, self.extra)


RUNTIMES = {
    "gguf": Library("llama_cpp", "llama-cpp-python", "llama"),
    "onnx": Library("onnxruntime", "onnxruntime", "onnx"),
    "checkpoint": Library("torch", "torch", ""),
}
HELD_OUT = "held-out calibration text"


@dataclass(frozen=True)
class Model:
    """Something that can be run: a .gguf file, perhaps with an adapter, or an .onnx file."""

    name: str
    base: Path
    adapter: Path | None = None

    @staticmethod
    def at(path: Path) -> Model:
        """An output folder, a GGUF or ONNX file, or a folder with a graph of another's making."""
        if path.is_dir() and not (path / MANIFEST).is_file() and any(path.rglob("*.onnx")):
            return Model(str(path), model_file(path))
        if path.is_dir():
            artifact = Artifact.open(path)
            return Model(str(path), artifact.base, artifact.factors)
        if not path.is_file():
            raise EdgepackError(
                f"{path}: no such file or folder",
                hint="give an output folder, an .onnx or a .gguf file",
            )
        return Model(str(path), path)

    @property
    def bytes(self) -> int:
        """Size of its files."""
        files = [path for path in (self.base, self.adapter) if path]
        if self.base.suffix == ".onnx":
            files += data_files(self.base)
        return sum(path.stat().st_size for path in files)

    def open(self, context: int, sequences: int = 1) -> Runtime:
        """Load it."""
        if self.base.suffix == ".onnx":
            return OnnxRuntime(self.base, self.adapter, context=context, sequences=sequences)
        return LlamaCpp(self.base, self.adapter, context=context, sequences=sequences)


@dataclass(frozen=True)
class Text:
    """What to predict: a text, or tokens ``[n, length]`` that are held out from calibration."""

    name: str
    content: str | Tensor

    @property
    def digest(self) -> str:
        """sha256 of the text or of the tokens."""
        content = self.content
        data = content.encode() if isinstance(content, str) else content.numpy().tobytes()
        return hashlib.sha256(data).hexdigest()

    def chunks(self, runtime: Scorer, context: int, tokens: int) -> NDArray[np.int64]:
        """About so many `tokens` of it, ``[n, context]``."""
        limit = -(-tokens // context)
        if isinstance(self.content, str):
            return chunk(runtime, self.content, context, limit)
        return _held_out(self.content, runtime, context, limit)


def verify(made: Plan, folder: Path) -> Steps[None]:
    """The files just written, in their runtime: it loads them, and reads text as the model does.
    Nothing where the runtime is not installed."""
    if find_spec(RUNTIMES[made.target].module) is None:
        return
    yield Progress("export", 0, 1, "the files in their runtime")
    with written(made.target, folder).open(VERIFIED_CONTEXT) as runtime:
        agreement(runtime, made.dense.checkpoint.tokenizer)


def written(target: str, folder: Path) -> Model:
    """Our own model in a folder that has no manifest yet."""
    if target == "onnx":
        return Model("edgepack", model_file(folder))
    factors = folder / "factors.gguf"
    return Model("edgepack", folder / "base.gguf", factors if factors.exists() else None)


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
    return Stage("measure", ("edgepack.measure", "edgepack.formats"), options, inputs)


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


def write_original(
    target: str, original: Checkpoint, folder: Path, stage: str = "measure"
) -> Steps[Path]:
    """A model with its matrices as f16, for the runtime of a target; the file to open."""
    yield Progress(stage, 0, 1, "writing the original as f16")
    if target == "onnx":
        from edgepack.export import onnx

        options = onnx.graph_options(original, Onnx())
        return (yield from onnx.write_plain(folder, original, None, options, stage))
    write_plain(folder / "original.gguf", original)
    return folder / "original.gguf"


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


def write_plain_onnx(
    made: Plan, formats: Mapping[str, str], folder: Path, stage: str
) -> Steps[Path]:
    """The model as a graph in those types, rounded to nearest, in a new folder; the graph."""
    from edgepack.export import onnx

    folder.mkdir()
    options = onnx.graph_options(made.checkpoint, made.recipe.export.onnx)
    return (yield from onnx.write_plain(folder, made.checkpoint, formats, options, stage))


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


def _held_out(tokens: Tensor, runtime: Scorer, context: int, limit: int) -> NDArray[np.int64]:
    """The held-out calibration tokens, cut as `chunk` cuts a text."""
    flat = tokens.flatten().numpy()
    context = min(context, len(flat))
    chunks = flat[: len(flat) // context * context].reshape(-1, context)[:limit].copy()
    if runtime.bos is not None:
        chunks[:, 0] = runtime.bos
    return chunks


def peers(made: Plan) -> dict[str, dict[str, str]]:
    """Label → format of every matrix, for each stock file to compare with. Outside the blocks
    stock gets our formats; inside, only types that fit the model's widths."""
    specs = [made.checkpoint.specs[name] for name in made.choices]
    same = {name: choice.format for name, choice in made.choices.items()}
    uniform = {
        name: {s.name: same[s.name] if s.block is None else name for s in specs}
        for name in stock_formats()
        if name != "f16"
        and all(format_of(name).fits(s.shape[1]) for s in specs if s.block is not None)
    }
    sizes = {
        name: sum(format_of(formats[s.name]).nbytes(s.shape) for s in specs)
        for name, formats in uniform.items()
    }
    ours = sum(made.bytes_by_part().values())
    nearest = min((abs(size - ours) for size in sizes.values()), default=0)
    found = {name: uniform[name] for name, size in sizes.items() if abs(size - ours) == nearest}
    if same not in found.values():
        found |= {name: formats for name, formats in uniform.items() if formats == same}
    of = " of the slice" if made.slice else ""
    labelled = {f"stock {name} + imatrix{of}": formats for name, formats in found.items()}
    if same not in found.values():
        labelled[f"stock, same types + imatrix{of}"] = same
    return labelled


def write_stock(
    made: Plan, imatrix: Callable[[str], Tensor], formats: Mapping[str, str], path: Path
) -> int:
    """The model as llama-quantize makes it in those types: with the `imatrix` of each weight in the
    blocks, without one for embeddings and head."""

    def load(name: str) -> Tensor:
        return _stock_bytes(made, name, formats[name], imatrix(name))

    return write_model(path, made.checkpoint, formats, load)


def _stock_bytes(made: Plan, name: str, form: str, imatrix: Tensor) -> Tensor:
    """One matrix as llama-quantize stores it. Outside the blocks it uses no imatrix; for types that
    demand one, all columns are given the same weight there."""
    spec = made.checkpoint.specs[name]
    importance: NDArray[np.float32] | None = imatrix.float().numpy()
    if spec.block is None:
        importance = np.ones(spec.shape[1], np.float32) if requires_imatrix(form) else None
    W = made.checkpoint.tensor(name).numpy()
    return torch.from_numpy(stock_quantize(form, W, importance))
