"""Tiny models whose weights are stored as codes with scales."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny import make_model

FP8 = torch.float8_e4m3fn
LINEAR = re.compile(r".*(self_attn|mlp)\.(\w+_proj|\w+put_linear)\.weight")


def expanded(scale, shape, block):
    """A scale for every element, by its row and column."""
    rows = torch.arange(shape[0])[:, None] // block[0]
    columns = torch.arange(shape[1])[None] // block[1]
    return scale[rows, columns]


def make_fp8(folder, family="qwen3", *, block=32, about=None):
    """A tiny model whose linear layers are in FP8, with scales of square blocks; beside it, in
    ``…-plain``, the same in float32."""
    make_model(folder, family, hidden=64, intermediate=96, dtype=torch.float32)
    path = folder / "model.safetensors"
    plain = shutil.copytree(folder, f"{folder}-plain")
    made, values = {}, {}
    for name, W in load_file(path).items():
        if not LINEAR.fullmatch(name):
            made[name] = values[name] = W
            continue
        rows, columns = W.shape
        tiles = W.reshape(rows // block, block, columns // block, block)
        scale = tiles.abs().amax((1, 3)) / 448
        made[name] = (W / expanded(scale, W.shape, (block, block))).to(FP8)
        made[f"{name}_scale_inv"] = scale
        values[name] = made[name].float() * expanded(scale, W.shape, (block, block))
    save_file(values, Path(plain) / "model.safetensors", metadata={"format": "pt"})
    save_file(made, path, metadata={"format": "pt"})
    configure(folder, about or {"quant_method": "fp8", "weight_block_size": [block, block]})


def configure(folder, quantization):
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(content))
