"""A folder that ONNX Runtime, onnxruntime-genai, optimum and Transformers.js all read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from torch import Tensor

from edgepack.checkpoint import Checkpoint
from edgepack.checkpoint.save import config
from edgepack.core import plugins, telemetry
from edgepack.core.disk import atomic
from edgepack.core.progress import Progress, Steps
from edgepack.core.safetensors_header import sort_texts
from edgepack.core.weights import FactoredWeight, QuantizedTensor, WeightFormat
from edgepack.export import _onnx_graph
from edgepack.export import _onnx_pack as pack
from edgepack.export._onnx_graph import Array, Graph
from edgepack.export._onnx_store import Load
from edgepack.export.card import card
from edgepack.export.genai import genai_config
from edgepack.export.onnx_decoder import decoder_graph
from edgepack.export.onnx_limits import positions
from edgepack.export.profiles import PROFILES, GraphOptions
from edgepack.export.values import F32, check_finite, plain_formats
from edgepack.formats.base import Format
from edgepack.recipe.export import Onnx

FOLDER = "onnx"
DTYPES = {"model": "fp32", "model_quantized": "q8"}
"""Name of a graph → Transformers.js's dtype, where that is not the suffix of the name."""
HALF = {"": "_fp16", "_q2": "_q2f16", "_q4": "_q4f16"}
"""Suffix of a name → suffix if the graph computes in float16; others do not change."""
FACTORS = "factors"
"""Name of the files with L and R, without extension."""
ADAPTER = ".onnx_adapter"
"""Extension of values for factors that ONNX Runtime reads."""
SUFFIX = {2: "_q2", 4: "_q4", 8: "_int8"}
"""Bits that the blocks are computed with → suffix of the file's name, as in Transformers.js."""
WHOLE = {"f16": "", F32: "", "int8": "_quantized"}
"""The same for formats without blocks; Transformers.js calls `_quantized` q8."""


def graph_options(checkpoint: Checkpoint, options: Onnx) -> GraphOptions:
    """Options of a model's graph, from those of the recipe."""
    known = positions(checkpoint, options.context)
    half = options.activations == "float16"
    return GraphOptions(known, PROFILES[options.profile], half, options.qdq, options.adapters)


def stores(fmt: Format) -> bool:
    """Whether a graph can hold a format."""
    return fmt.name in pack.WHOLE_ROWS or pack.find_layout(fmt) is not None


def write_folder(
    folder: Path,
    checkpoint: Checkpoint,
    parts: Mapping[str, WeightFormat],
    load: Load,
    options: GraphOptions,
    norms: Mapping[str, Tensor] | None = None,
    stage: str = "export",
) -> Steps[Path]:
    """Write graph, data, configuration and tokenizer into `folder`; returns the graph's path.

    `parts` gives the format of every matrix, `load` reads one, `norms` replaces some norms.
    """
    graph = decoder_graph(checkpoint, parts, load, options, norms)
    path = folder / FOLDER / model_name(checkpoint, parts, options)
    path.parent.mkdir(exist_ok=True)
    for done, tensor in enumerate(_onnx_graph.write(graph, path, options.profile.chunk)):
        yield Progress(stage, done, len(graph.stored), tensor)
    if graph.factors:
        _write_factors(graph, folder, as_inputs=options.profile.given_factors)
    own = (node.name for node in graph.inputs if node.name not in graph.factors)
    inputs = [name for name in own if not name.startswith("past_")]
    genai = genai_config(checkpoint, path, inputs, options.context)
    _write_json(folder / "genai_config.json", genai)
    browsers = _browsers(path, options)
    text = card(checkpoint, path, browsers["dtype"], graph, options)
    (folder / "README.md").write_text(text, encoding="utf-8")
    _write_json(folder / "config.json", _config(checkpoint) | {"transformers.js_config": browsers})
    if generation := checkpoint.generation_config():
        _write_json(folder / "generation_config.json", dict(generation))
    _write_tokenizer(checkpoint, folder)
    return path


def _browsers(path: Path, options: GraphOptions) -> dict[str, Any]:
    """The configuration for Transformers.js."""
    dtype = DTYPES.get(path.stem, path.stem.removeprefix("model_"))
    files = len(list(path.parent.glob(f"{path.name}_data*")))
    found = {"dtype": dtype, "use_external_data_format": {path.name: files}}
    return found | ({"device": options.profile.device} if options.profile.device else {})


def _write_factors(graph: Graph, folder: Path, *, as_inputs: bool) -> None:
    """Write L and R as a file of their own, which fine-tuning starts from."""
    loaded = {t.name: np.ascontiguousarray(t.load()) for t in graph.factors.values()}
    write_factors(folder / (FACTORS + (".safetensors" if as_inputs else ADAPTER)), loaded)


def write_factors(
    path: Path, factors: Mapping[str, Array], about: Mapping[str, str] | None = None
) -> None:
    """Write values for a graph's factors: an adapter for ONNX Runtime and genai, or safetensors
    (with the texts `about`), which JavaScript reads in a few lines."""
    for name, values in factors.items():
        check_finite(name, values)
    if path.suffix != ADAPTER:
        save_file(dict(factors), path, metadata=dict(about or {}))
        sort_texts(path)
        return
    onnxruntime = telemetry.onnxruntime()
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters({name: value(array) for name, array in factors.items()})
    adapter.export_adapter(str(path))


def write_plain(
    folder: Path,
    checkpoint: Checkpoint,
    formats: Mapping[str, str] | None,
    options: GraphOptions,
    stage: str = "measure",
) -> Steps[Path]:
    """Write a graph to be measured, with every matrix rounded to nearest in its format. With None,
    all are f16, or f32 if float16 does not hold them."""
    formats = formats or plain_formats(checkpoint)

    def load(name: str) -> FactoredWeight:
        W = checkpoint.tensor(name)
        if formats[name] == F32:
            return FactoredWeight(QuantizedTensor(F32, W, {}))
        plugin: Format = plugins.find("formats", formats[name])
        return FactoredWeight(plugin.quantize(W))

    parts = {name: WeightFormat(fmt) for name, fmt in formats.items()}
    return (yield from write_folder(folder, checkpoint, parts, load, options, stage=stage))


def graph_without_values(
    checkpoint: Checkpoint, parts: Mapping[str, WeightFormat], options: GraphOptions
) -> Graph:
    """The graph of a model before any values are read."""

    def load(name: str) -> FactoredWeight:
        raise AssertionError(f"{name}: sizes need no values")

    return decoder_graph(checkpoint, parts, load, options)


def files_size(
    checkpoint: Checkpoint, parts: Mapping[str, WeightFormat], options: GraphOptions
) -> int:
    """Bytes of the graph and its data, and of factors that are in neither. For those it is slightly
    too large: every name comes with a shape and two offsets."""
    graph, name = (
        graph_without_values(checkpoint, parts, options),
        model_name(checkpoint, parts, options),
    )
    inputs = [t for t in graph.factors.values() if t.name not in graph.stored]
    beside = sum(t.nbytes + len(t.name) + 100 for t in inputs)
    return _onnx_graph.size_of(graph, name, options.profile.chunk) + beside


def model_name(
    checkpoint: Checkpoint, parts: Mapping[str, WeightFormat], options: GraphOptions
) -> str:
    """The graph's file, named by the bits that most weights of the blocks are computed with."""
    counts: Counter[str] = Counter()
    for name, known in parts.items():
        spec = checkpoint.specs[name]
        if spec.block is not None:
            layout = pack.layout_of(known.Q)
            counts[SUFFIX[layout.computed] if layout else WHOLE[known.Q]] += spec.numel
    suffix = counts.most_common(1)[0][0]
    return f"model{HALF.get(suffix, suffix) if options.half else suffix}.onnx"


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json. Its readers use the hidden size only to compute the heads' width. So for a
    sliced model, or one with wide heads, it is the total width of the heads."""
    d = checkpoint.dimensions
    wide = d.num_attention_heads * d.head_dim
    about = config(checkpoint)
    about.pop("auto_map", None)
    return {**about, "hidden_size": wide, "architectures": [checkpoint.architecture.class_name]}


def _write_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Write tokenizer files that transformers 4 and 5 and Transformers.js read in the same way: 4
    has no TokenizersBackend and would add token types, and JavaScript ignores chat_template.jinja.
    """
    checkpoint.tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    about["tokenizer_class"] = "PreTrainedTokenizerFast"
    about["model_input_names"] = ["input_ids", "attention_mask"]
    if checkpoint.tokenizer.chat_template:
        about["chat_template"] = checkpoint.tokenizer.chat_template
    _write_json(path, about)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")
