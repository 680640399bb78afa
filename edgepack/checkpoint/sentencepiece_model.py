"""A folder with sentencepiece's ``tokenizer.model`` and no tokenizer.json.

transformers reads such a file without its flags: a space before every text even if the model has
none, and pairs even for a Unigram model. Here the file becomes the keys of a GGUF, as in
llama.cpp's conversion, and these become a tokenizer.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from gguf import TokenType
from tokenizers import Regex, Tokenizer, normalizers

from edgepack.core.untrusted import MAX_BYTES, quote, read_json
from edgepack.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MODEL, CONFIG, ADDED = "tokenizer.model", "tokenizer_config.json", "added_tokens.json"
BESIDE = (CONFIG, "special_tokens_map.json", "chat_template.json", "chat_template.jinja")
MAX_PIECE = 1024
"""Most characters of a piece, as for a GGUF; merges are found by cutting pieces everywhere."""
BPE = 2
"""`trainer_spec.model_type` of byte pairs."""
DAMAGED = "take the file published with the model"
HINT = "take a tokenizer.json; --target onnx takes any"


def from_model(folder: Path) -> PreTrainedTokenizerFast | None:
    """The tokenizer of a folder with a ``tokenizer.model``; None if that is another kind of file.

    `CheckpointError` for models that are no byte pairs, and for added tokens without a place.
    """
    from transformers import PreTrainedTokenizerFast

    proto = _parse(folder / MODEL)
    if proto is None:
        return None
    if proto.trainer_spec.model_type != BPE:
        raise CheckpointError(
            f"{MODEL} is sentencepiece's, and no BPE (type {proto.trainer_spec.model_type})",
            hint=HINT,
        )
    if any(len(piece.piece) > MAX_PIECE for piece in proto.pieces):
        raise CheckpointError(
            f"{MODEL} has a piece of more than {MAX_PIECE} characters", hint=DAMAGED
        )
    config = _json(folder / CONFIG)
    fields = _fields(proto, config)
    backend = _backend(fields, proto, folder)
    _add(backend, _json(folder / ADDED))
    with TemporaryDirectory() as place:
        backend.save(f"{place}/tokenizer.json")
        for name in BESIDE:
            if (folder / name).is_file():
                shutil.copy(folder / name, place)
        wrap: Any = PreTrainedTokenizerFast  # an untyped class
        tokenizer: PreTrainedTokenizerFast = wrap.from_pretrained(
            place,
            local_files_only=True,
            add_bos_token=config.get("add_bos_token", True),
            **_names(fields, config),
        )
    listed = config.get("added_tokens_decoder") or {}
    for index, token in listed.items():
        found = tokenizer.convert_tokens_to_ids(token["content"])
        if found != int(index):
            raise CheckpointError(
                f"{CONFIG}: the token {quote(token['content'])} should be {index}, and would be "
                f"{found}",
                hint=HINT,
            )
    return tokenizer


def _parse(path: Path) -> Any | None:
    """The ``ModelProto``; None for a file that is none (tiktoken's has the same name)."""
    messages: Any = import_module("google.protobuf.message")  # both are untyped
    converters: Any = import_module("transformers.convert_slow_tokenizer")
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{MODEL} has more than {MAX_BYTES >> 20} MB", hint=DAMAGED)
    proto = converters.import_protobuf().ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except messages.DecodeError:
        return None
    return proto if proto.pieces else None


def _json(path: Path) -> dict[str, Any]:
    content = read_json(path, CheckpointError) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _fields(proto: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a GGUF. Types of pieces have the same numbers there."""
    spec, pieces = proto.trainer_spec, proto.pieces
    types = [TokenType(piece.type) for piece in pieces]
    prefix = config.get("add_prefix_space")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [
            piece.piece.replace("▁", " ") if kind == TokenType.USER_DEFINED else piece.piece
            for piece, kind in zip(pieces, types, strict=True)
        ],
        "tokenizer.ggml.scores": [piece.score for piece in pieces],
        "tokenizer.ggml.token_type": [int(kind) for kind in types],
        "tokenizer.ggml.add_space_prefix": (
            proto.normalizer_spec.add_dummy_prefix if prefix is None else bool(prefix)
        ),
    } | {
        f"tokenizer.ggml.{ours}_token_id": getattr(spec, f"{theirs}_id")
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad"))
        if 0 <= getattr(spec, f"{theirs}_id") < len(pieces)
    }


def _backend(fields: Mapping[str, Any], proto: Any, folder: Path) -> Tokenizer:
    """Pairs by score, with the normalizer of the model before the marks of blanks."""
    from edgepack.checkpoint.tokenizer import from_gguf

    backend: Tokenizer = from_gguf(fields, folder.name).backend_tokenizer
    spec = proto.normalizer_spec
    first: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        first.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        first.append(normalizers.Replace(Regex(r"\A +| +\z|(?<= ) +"), ""))
    if first:
        backend.normalizer = normalizers.Sequence([*first, backend.normalizer])
    return backend


def _add(backend: Tokenizer, added: Mapping[str, Any]) -> None:
    """Add the tokens of added_tokens.json, which must follow the model's."""
    for token, index in sorted(added.items(), key=lambda item: int(item[1])):
        if backend.token_to_id(token) is None:
            backend.add_special_tokens([token])
        if (found := backend.token_to_id(token)) != index:
            raise CheckpointError(
                f"{ADDED}: the token {quote(token)} should be {index}, and would be {found}",
                hint=HINT,
            )


def _names(fields: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """The model's special tokens, where tokenizer_config.json names none."""
    tokens = fields["tokenizer.ggml.tokens"]
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: fields.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {n: tokens[i] for n, i in ids.items() if i is not None and n not in config}
