"""Checkpoints with the shapes of large models: sparse files, of which a few blocks have values.

A hole of a sparse file takes no disk and reads as zeros. A block of zero matrices passes the hidden
state on as it is, so such a model computes; it is only that most of its blocks do nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.support.tiny import CHAT, SPECIAL

SCALE = 0.02
"""Standard deviation of random weights."""
PIECE = 1 << 24
"""Numbers that are drawn and written at once."""
Tensors = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Llama, and in how many files it is published."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    shards: int

    def outside(self) -> Tensors:
        """Name → shape of what is in no block."""
        rows = (self.vocab, self.hidden)
        names = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
        return dict(zip(names, (rows, (self.hidden,), rows), strict=True))

    def block(self, index: int) -> Tensors:
        """Name → shape of the tensors of a block."""
        h, kv = self.hidden, self.kv_heads * self.hidden // self.heads
        shapes = {
            "input_layernorm": (h,),
            "mlp.down_proj": (h, self.intermediate),
            "mlp.gate_proj": (self.intermediate, h),
            "mlp.up_proj": (self.intermediate, h),
            "post_attention_layernorm": (h,),
            "self_attn.k_proj": (kv, h),
            "self_attn.o_proj": (h, h),
            "self_attn.q_proj": (h, h),
            "self_attn.v_proj": (kv, h),
        }
        return {f"model.layers.{index}.{name}.weight": s for name, s in shapes.items()}


LLAMA_7B = Shape(32, 4096, 11008, 32, 32, 32000, 3)
LLAMA_70B = Shape(80, 8192, 28672, 64, 8, 128256, 30)
LLAMA_405B = Shape(126, 16384, 53248, 128, 8, 128256, 191)


def write_sparse(folder: Path, shape: Shape, real: Sequence[int] = ()) -> Path:
    """A checkpoint in bfloat16 in `folder`. The blocks of the numbers `real` have random weights,
    and with them the embeddings and the head; all others are holes. Norms are 1."""
    folder.mkdir(parents=True)
    groups = [shape.outside(), *(shape.block(i) for i in range(shape.layers))]
    per_file = math.ceil(len(groups) / shape.shards)
    places: dict[str, str] = {}
    count = math.ceil(len(groups) / per_file)
    for number in range(count):
        tensors = {
            name: size
            for group in groups[number * per_file : (number + 1) * per_file]
            for name, size in group.items()
        }
        name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        _write_file(folder / name, tensors, real)
        places |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        bos_token_id=0,
        eos_token_id=2,
    )
    config.save_pretrained(folder)
    make_wide_tokenizer(shape.vocab).save_pretrained(folder)
    return folder


def _write_file(path: Path, tensors: Tensors, real: Sequence[int]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in tensors.items():
        start, end = end, end + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        begin = file.tell()
        file.truncate(begin + end)
        for number, (name, size) in enumerate(tensors.items()):
            place = header[name]
            assert isinstance(place, dict)
            file.seek(begin + place["data_offsets"][0])
            for values in _values(name, size, number, real):
                file.write(values.bfloat16().view(torch.uint8).numpy().data)


def _values(
    name: str, size: tuple[int, ...], seed: int, real: Sequence[int]
) -> Iterator[torch.Tensor]:
    """What a tensor holds, a piece at a time; nothing where it is a hole."""
    if len(size) == 1:
        yield torch.ones(size)
    elif real and (".layers." not in name or int(name.split(".")[2]) in real):
        generator, left = torch.Generator().manual_seed(seed), math.prod(size)
        while left:
            here = min(left, PIECE)
            yield SCALE * torch.randn(here, generator=generator)
            left -= here


def make_wide_tokenizer(size: int) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of a real vocabulary's size: all pairs of bytes, then triples."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*SPECIAL, *letters])}
    merges: list[tuple[str, str]] = []
    firsts = [*letters, *(a + b for a in letters for b in letters)]
    for first, second in ((a, b) for a in firsts for b in letters):
        if len(vocab) == size:
            break
        vocab[first + second] = len(vocab)
        merges.append((first, second))
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[0],
        chat_template=CHAT,
        clean_up_tokenization_spaces=False,
    )
