"""Adapters that PEFT makes for small random models, with random values in place of training."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file


def make_adapter(base: Path, folder: Path, *, tokens: int = 0, seed: int = 1, **config: Any) -> Any:
    """Save an adapter in `folder`; returns PEFT's model in float32. `tokens` more tokens resize the
    embeddings, and the tokenizer is saved with the adapter."""
    peft = pytest.importorskip("peft")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if tokens:
        tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        tokenizer.add_tokens([f"<|new{i}|>" for i in range(tokens)])
        torch.manual_seed(seed)
        model.resize_token_embeddings(len(tokenizer))
        tokenizer.save_pretrained(folder)
    settings = {"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 6} | config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT tells of tied weights and of saved embeddings
        tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
        _randomise(tuned, torch.Generator().manual_seed(seed))
        resized = {"save_embedding_layers": True} if tokens else {}
        tuned.save_pretrained(folder, **resized)
    return tuned.eval()


@torch.no_grad()
def _randomise(tuned: torch.nn.Module, generator: torch.Generator) -> None:
    for name, value in tuned.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if "magnitude" in name:
            value.mul_(1 + 0.1 * noise)
        elif "lora_" in name:
            value.copy_(noise * 0.1)
        elif value.requires_grad:
            value.add_(noise * 0.05)


def write_adapter(folder: Path, module: str, shape: tuple[int, int], seed: int = 1) -> None:
    """An adapter of one module as PEFT would save it, where PEFT is not needed."""
    folder.mkdir()
    about = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    generator = torch.Generator().manual_seed(seed)
    sizes = {"A": (4, shape[1]), "B": (shape[0], 4)}
    tensors = {
        f"base_model.model.{module}.lora_{half}.weight": torch.randn(size, generator=generator)
        for half, size in sizes.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")


def merged(tuned: Any) -> dict[str, torch.Tensor]:
    """Weight → its values in PEFT's own merge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(tuned.merge_and_unload().state_dict())
