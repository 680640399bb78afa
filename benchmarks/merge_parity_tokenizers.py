"""What mergekit makes of embeddings when tokenizers differ: the golden file of the tests.

Run it with a Python that has mergekit 0.1.5 and not edgepack:

    HF_HUB_OFFLINE=1 python -P benchmarks/merge_parity_tokenizers.py FILE

The tests read FILE at tests/merge/golden/tokenizers.json. The inputs are models of one layer. Row i
of an input's embedding has the number i + 1 in a column of its own: so a merged row says which rows
it is made of. A case is merged once an input, with weight 1 for it and 0 for the others. That gives
the input's embedding in the merged order.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, Unigram
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WIDTH = 4
TENSORS = ("model.embed_tokens.weight", "lm_head.weight")


def bpe(words: Sequence[str], added: Sequence[str]) -> Tokenizer:
    """A byte-level vocabulary with the pieces of some words."""
    vocab = {character: index for index, character in enumerate("abcdeĠ!")}
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                merges.append((word[: end - 1], word[end - 1]))
                vocab[word[:end]] = len(vocab)
    backend = Tokenizer(BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return with_added(backend, added)


def unigram(pieces: Sequence[str], added: Sequence[str]) -> Tokenizer:
    """A sentencepiece vocabulary with scores."""
    scores = {"<unk>": 0.0, "▁": -2.0} | dict.fromkeys("abcde", -4.0)
    scores |= {piece: -3.0 - index / 10 for index, piece in enumerate(pieces)}
    backend = Tokenizer(Unigram(list(scores.items()), unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return with_added(backend, added)


def with_added(backend: Tokenizer, added: Sequence[str]) -> Tokenizer:
    for token in added:
        special = token.startswith("<|")
        backend.add_tokens([AddedToken(token, special=special, normalized=not special)])
    return backend


INPUTS = {
    "A": (bpe(["ab", "Ġcd", "abc"], ["<|end|>", "<|a|>", "<x>"]), 14),
    "B": (bpe(["ab", "Ġce", "cd", "abd"], ["<|end|>", "<|b|>"]), 24),
    "C": (bpe(["ab", "cd"], ["<|b|>", "<|end|>"]), 11),
    "short": (bpe(["ab", "Ġcd", "abc"], ["<|end|>", "<|a|>", "<x>"]), 11),
    "U": (unigram(["▁ab", "cd"], ["<|e|>"]), 10),
    "V": (unigram(["▁ab", "ce"], ["<|e|>", "<|f|>"]), 11),
}
"""Name → tokenizer and rows of the embedding."""
RULES = {
    "<|a|>": {"source": "A"},
    "ab": {"source": {"kind": "zero"}, "force": True},
    "Ġce": {"source": {"kind": "zero"}},
    "<|b|>": {"source": "B", "force": True},
    "<|end|>": {"source": {"kind": "model_token", "model": "B", "token_id": 3}, "force": True},
    "<new>": {"source": {"kind": "model_token", "model": "B", "token": "cd"}},
}
CASES: list[dict[str, Any]] = [
    {"models": "ABC", "base_model": "A", "tokenizer_source": "union"},
    {"models": "ABC", "tokenizer_source": "union"},
    {"models": "CBA", "base_model": "C", "tokenizer_source": "union"},
    {"models": "ABC", "base_model": "A", "tokenizer_source": "base"},
    {"models": "ABC", "base_model": "A", "tokenizer_source": "B"},
    {"models": "AC", "base_model": "A", "tokenizer_source": "B"},
    {"models": "AC", "tokenizer_source": "B"},
    {"models": ["short", "B"], "base_model": "short", "tokenizer_source": "union"},
    {"models": "UV", "base_model": "U", "tokenizer_source": "union"},
    {"models": "UV", "base_model": "U", "tokenizer_source": "base"},
    {
        "models": "ABC",
        "base_model": "A",
        "tokenizer": {"source": "union", "tokens": RULES, "pad_to_multiple_of": 16},
    },
]


def embedding(column: int, rows: int) -> torch.Tensor:
    """Row i has i + 1 in one column."""
    values = torch.zeros(rows, WIDTH)
    values[:, column] = torch.arange(1, rows + 1)
    return values


def write_input(name: str, folder: Path) -> None:
    backend, rows = INPUTS[name]
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    values = embedding(list(INPUTS).index(name) % 3, rows)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(values)
        model.lm_head.weight.copy_(-values)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)


def localised(value: Any, places: dict[str, str]) -> Any:
    """A recipe with folders in place of names."""
    if isinstance(value, dict):
        named = ("source", "model", "base_model", "tokenizer_source")
        return {
            key: places.get(inner, inner)
            if key in named and isinstance(inner, str)
            else localised(inner, places)
            for key, inner in value.items()
        }
    return value


def run(case: dict[str, Any], places: dict[str, str], folder: Path) -> dict[str, Any]:
    """The rows that each input has in the merged order, by token; "" for padding."""
    models, rest = list(case["models"]), {k: v for k, v in case.items() if k != "models"}
    found: dict[str, Any] = {}
    for probe in models:
        recipe = localised(rest, places) | {
            "merge_method": "linear",
            "models": [
                {"model": places[m], "parameters": {"weight": float(m == probe)}} for m in models
            ],
            "parameters": {"normalize": False},
            "dtype": "float32",
        }
        out = folder / f"out-{probe}"
        options = MergeOptions(quiet=True, write_model_card=False)
        run_merge(MergeConfiguration.model_validate(recipe), str(out), options)
        weights = load_file(next(out.glob("model*.safetensors")))
        vocab = Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab()
        for name in TENSORS:
            rows = {token: weights[name][index].tolist() for token, index in vocab.items()}
            extra = weights[name][len(vocab) :]
            padding = {"": extra[-1].tolist()} if len(extra) else {}
            found.setdefault(probe, {})[name] = dict(sorted(rows.items())) | padding
            found["rows"] = len(weights[name])
    return {**case, "models": models, "result": found}


def main(path: Path) -> None:
    """Write the golden file."""
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        places = {name: str(Path(folder) / name) for name in INPUTS}
        for name, place in places.items():
            write_input(name, Path(place))
        for number, case in enumerate(CASES):
            cases.append(run(case, places, Path(folder) / str(number)))
    inputs = {
        name: {
            "tokenizer": json.loads(backend.to_str()),
            "rows": rows,
            "column": list(INPUTS).index(name) % 3,
        }
        for name, (backend, rows) in INPUTS.items()
    }
    text = json.dumps(
        {"mergekit": version("mergekit"), "inputs": inputs, "cases": cases}, ensure_ascii=False
    )
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
