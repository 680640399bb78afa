"""Checks of a folder with an ONNX graph of any origin: its settings, its files, its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from edgepack.core.untrusted import NOT_OPENED, Untrusted, quote, read_json, shorten, validate
from edgepack.errors import EdgepackError, missing_extra

GENAI = "genai_config.json"
CONFIG = "config.json"
AGAIN = "build or copy the folder again"
_MAX = 2**31 - 1
Count = Annotated[int, Field(ge=1, le=_MAX)]


class _GenaiDecoder(Untrusted):
    filename: str = Field(min_length=1, max_length=1000)
    head_size: Count | None = None
    hidden_size: Count | None = None
    num_attention_heads: Count | None = None
    num_key_value_heads: Count | None = None


class _GenaiModel(Untrusted):
    decoder: _GenaiDecoder
    context_length: Count
    vocab_size: Count | None = None


class _Genai(Untrusted):
    """The parts of genai_config.json that are read."""

    model: _GenaiModel


class _Config(Untrusted):
    """The parts of config.json that are read."""

    max_position_embeddings: Count | None = None
    vocab_size: Count | None = None
    num_key_value_heads: Count | None = None
    num_attention_heads: Count | None = None
    hidden_size: Count | None = None
    head_dim: Count | None = None


class Numbers(NamedTuple):
    """Dimensions that a graph may give by name instead of by number."""

    positions: int
    vocab_size: int | None = None
    key_value_heads: int | None = None
    head_dim: int | None = None


def read_numbers(folder: Path) -> Numbers:
    """Numbers from genai_config.json and config.json."""
    genai = _genai(folder).model if (folder / GENAI).is_file() else None
    about = _Config()
    if (folder / CONFIG).is_file():
        place = _place(folder, CONFIG)
        data = _json(folder / CONFIG, place)
        about = validate(_Config, data, place, EdgepackError, hint=AGAIN)
    positions = genai.context_length if genai else about.max_position_embeddings
    if positions is None:
        raise EdgepackError(
            f"{_place(folder, CONFIG)}: max_position_embeddings is missing", hint=AGAIN
        )
    decoder = genai.decoder if genai else _GenaiDecoder(filename="model.onnx")
    heads = about.num_attention_heads or decoder.num_attention_heads
    wide = about.hidden_size or decoder.hidden_size
    share = wide // heads if wide and heads else None
    return Numbers(
        positions,
        about.vocab_size or (genai.vocab_size if genai else None),
        about.num_key_value_heads or decoder.num_key_value_heads or heads,
        about.head_dim or decoder.head_size or share,
    )


def model_file(folder: Path) -> Path:
    """The graph in a folder: the one that genai_config.json names, else the only one."""
    if (folder / GENAI).is_file():
        name = _genai(folder).model.decoder.filename
        return _inside(folder, name, f"{_place(folder, GENAI)}: filename")
    found = sorted([*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")])
    if len(found) == 1:
        return found[0]
    problem = "has no .onnx file" if not found else f"has {len(found)} .onnx files"
    where = shorten(str(folder), 120)
    raise EdgepackError(f"{where}: {problem}", hint="name the file itself")


def data_files(model: Path) -> list[Path]:
    """The files with a graph's tensors, in its folder or below it."""
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError:
        raise missing_extra("onnx", "onnx") from None

    place = shorten(str(model), 120)
    try:
        graph = onnx.load(model, load_external_data=False).graph
        names = sorted(set(_locations(graph)))
    except (DecodeError, ValueError, RecursionError):
        raise EdgepackError(f"{place}: is not an ONNX graph, or damaged", hint=AGAIN) from None
    except OSError as error:
        raise EdgepackError(
            f"{place}: cannot be read ({error.strerror})", hint=NOT_OPENED
        ) from None
    return [_inside(model.parent, name, f"{place}: a tensor's file") for name in names]


def _locations(graph: Any) -> Iterator[str]:
    """Names of files in all tensors of a graph, its nodes' constants and inner graphs."""
    sparse = (part for s in graph.sparse_initializer for part in (s.values, s.indices))
    tensors = [*graph.initializer, *sparse]
    for attribute in (a for node in graph.node for a in node.attribute):
        tensors += [attribute.t, *attribute.tensors]
        for inner in (attribute.g, *attribute.graphs):
            if inner.ByteSize():
                yield from _locations(inner)
    for tensor in tensors:
        for entry in tensor.external_data:
            if not (isinstance(entry.key, str) and isinstance(entry.value, str)):
                raise ValueError("a name that is not UTF-8")  # protobuf leaves it as bytes
            if entry.key == "location":
                yield entry.value


def _inside(folder: Path, name: str, what: str) -> Path:
    """The path of a file that a folder's files name; refused if it leads out of the folder."""
    paths, shown = (PurePosixPath(name), PureWindowsPath(name)), quote(name[:80])
    leads_out = any(path.is_absolute() or path.drive or ".." in path.parts for path in paths)
    if leads_out or not name.isprintable():
        raise EdgepackError(f"{what} {shown} is outside of its folder", hint=AGAIN)
    try:
        found = (folder / name).is_file()
    except OSError:  # the name is too long
        found = False
    if not found:
        raise EdgepackError(f"{what} {shown} is not there", hint=AGAIN)
    return folder / name


def _genai(folder: Path) -> _Genai:
    place = _place(folder, GENAI)
    return validate(_Genai, _json(folder / GENAI, place), place, EdgepackError, hint=AGAIN)


def _json(path: Path, place: str) -> Any:
    try:
        return read_json(path, EdgepackError, place=place)
    except OSError as error:
        raise EdgepackError(
            f"{place}: cannot be read ({error.strerror})", hint=NOT_OPENED
        ) from None


def _place(folder: Path, name: str) -> str:
    return f"{shorten(str(folder), 100)}/{name}"


class _Wanted(NamedTuple):
    """Types and number of dimensions of an input or output."""

    types: tuple[str, ...]
    rank: int


_WHOLE = ("tensor(int64)",)
FLOATS = ("tensor(float)", "tensor(float16)")
_INPUTS = {
    "input_ids": _Wanted(_WHOLE, 2),
    "attention_mask": _Wanted(_WHOLE, 2),
    "position_ids": _Wanted(_WHOLE, 2),
    "num_logits_to_keep": _Wanted(_WHOLE, 0),
}
_CACHE = _Wanted(FLOATS, 4)
_LOGITS = _Wanted(FLOATS, 3)
NEEDED = ("input_ids", "attention_mask")
EXPORTED = "take a decoder exported for text generation, with logits as its output"


def check_decoder(place: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """Refuse a graph that is not a decoder; nodes have a `name`, a `type` and a `shape`."""
    if missing := sorted(set(NEEDED) - set(inputs)):
        names = " and ".join(missing)
        raise EdgepackError(f"{place}: is no decoder, it does not take {names}", hint=EXPORTED)
    if "logits" not in outputs:
        raise EdgepackError(f"{place}: is no decoder, it does not give logits", hint=EXPORTED)
    _check_node(place, outputs["logits"], _LOGITS)
    for name, node in inputs.items():
        if name in _INPUTS:
            _check_node(place, node, _INPUTS[name])
        if name.startswith("past_key_values."):
            _check_node(place, node, _CACHE)
            present = name.replace("past_key_values", "present", 1)
            if present not in outputs:
                raise EdgepackError(
                    f"{place}: takes {quote(name)}, but gives no {quote(present)}",
                    hint="it is another kind of model, or one for another runtime",
                )


def _check_node(place: str, node: Any, wanted: _Wanted) -> None:
    sizes = [size for size in node.shape if isinstance(size, int)]
    if node.type not in wanted.types or len(node.shape) != wanted.rank or min(sizes, default=1) < 0:
        types = " or ".join(wanted.types)
        found = f"{node.type} of {len(node.shape)}"
        raise EdgepackError(
            f"{place}: {quote(node.name)} is {found} dimensions, not {types} of {wanted.rank}",
            hint="it is another kind of model, or one for another runtime",
        )


def reason(error: Exception) -> str:
    """The first line of ONNX Runtime's message, without its codes."""
    first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return shorten(first.rpartition("failed:")[2].strip() or first, 120)
