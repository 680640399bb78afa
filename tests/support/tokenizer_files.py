"""Files of tokenizers other than tokenizer.json, as their own programs write them."""

from __future__ import annotations

import base64
import json

from tokenizers import pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers.convert_slow_tokenizer import import_protobuf

from edgepack.checkpoint.pieces import BYTE_OF
from tests.support.tiny import SPECIAL, make_tokenizer

UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
START = r"[^\r\n\p{L}\p{N}]?"
TEKKEN = (
    f"{START}{UPPER}*{LOWER}+|{START}{UPPER}+{LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tekken(path):
    """Mistral's file of a vocabulary: bytes and ranks; tokens are made by merging ranks."""
    tokenizer = make_tokenizer(pre_tokenizers.Sequence([ByteLevel(False, use_regex=False)]))
    names = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)[len(SPECIAL) :]
    tokens = [bytes(BYTE_OF[c] for c in name) for name in names]
    tokens = [bytes([b]) for b in range(256)] + [token for token in tokens if len(token) > 1]
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    content = {
        "config": {
            "pattern": TEKKEN,
            "default_vocab_size": len(tokens) + 10,
            "default_num_special_tokens": 10,
            "version": "v3",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate(tokens)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": token, "is_control": True}
            for rank, token in enumerate(special)
        ],
    }
    path.write_text(json.dumps(content))
    return tokens


def write_sentencepiece(folder, *, prefix=True, kind=2, squeeze=False, config=None, more=()):
    """A ``tokenizer.model``, as sentencepiece's trainer writes it: pieces with scores."""
    proto = import_protobuf().ModelProto()
    normal = [
        "▁t",
        "he",
        "▁the",
        "in",
        "ing",
        "▁w",
        "or",
        "▁wor",
        *"▁abcdefghijklmnopqrstuvwxyz.,é",
    ]
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [] if squeeze else [("▁▁", 0.0, 4)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(piece, -float(rank), 1) for rank, piece in enumerate([*normal, *more])]
    for piece, score, number in pieces:
        proto.pieces.add(piece=piece, score=score, type=number)
    proto.trainer_spec.model_type = kind
    proto.trainer_spec.pad_id = -1
    proto.normalizer_spec.add_dummy_prefix = prefix
    proto.normalizer_spec.remove_extra_whitespaces = squeeze
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return len(pieces)
