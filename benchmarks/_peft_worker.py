"""PEFT's LoRA in a process of its own, perhaps on bitsandbytes' NF4 (QLoRA, arXiv 2305.14314).

Run by `benchmarks.finetune_quality` with the Python of another environment; imports nothing of
edgepack. Reads a job as JSON (its first argument) and writes its result as JSON (the second).
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch.nn import functional

IGNORED = -100


def load(job: dict[str, Any]) -> Any:
    """The model with an untrained LoRA on all linear modules of its blocks."""
    given: dict[str, Any] = {"dtype": torch.float32}
    if job["nf4"]:
        given["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], **given)
    if job["nf4"]:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=True)
    else:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    torch.manual_seed(0)
    lora = LoraConfig(r=job["r"], lora_alpha=job["lora_alpha"], target_modules="all-linear")
    return get_peft_model(model, lora)


def batch_of(examples: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and labels, padded on the right; labels are the next tokens already."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([torch.tensor(ids) for ids, _ in examples], batch_first=True)
    labels = pad(
        [torch.tensor(labels) for _, labels in examples], batch_first=True, padding_value=IGNORED
    )
    return ids, labels


def loss_of(model: Any, examples: list[Any]) -> torch.Tensor:
    ids, labels = batch_of(examples)
    logits = model(input_ids=ids, use_cache=False).logits
    return functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def train(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    """AdamW over the given batches, with the given rates."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job["learning_rate"], weight_decay=0.0)
    losses, tokens = [], 0
    begin = time.monotonic()
    for batch, rate in zip(job["batches"], job["rates"], strict=True):
        count = sum(label != IGNORED for _, labels in batch for label in labels)
        total = 0.0
        for start in range(0, len(batch), job["micro_batch"]):
            part = batch[start : start + job["micro_batch"]]
            loss = loss_of(model, part) / count
            loss.backward()
            total += loss.item()
            tokens += sum(len(ids) for ids, _ in part)
        torch.nn.utils.clip_grad_norm_(trained, job["clip"])
        for group in optimizer.param_groups:
            group["lr"] = job["learning_rate"] * rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
    seconds = time.monotonic() - begin
    return {"losses": losses, "tokens_per_second": tokens / seconds, "peak": peak()}


@torch.no_grad()
def evaluate(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Loss on the test examples, and greedy answers to their prompts."""
    model.eval()
    total = count = 0.0
    for example in job["test"]:
        total += loss_of(model, [example]).item()
        count += sum(label != IGNORED for label in example[1])
    answers = []
    for prompt in job["prompts"]:
        ids = torch.tensor([prompt])
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=job["max_tokens"],
            do_sample=False,
            eos_token_id=job["ends"],
            pad_token_id=job["ends"][0],
        )
        answers.append(found[0, len(prompt) :].tolist())
    return {"loss": total / count, "perplexity": math.exp(total / count), "answers": answers}


def peak() -> int:
    """Most bytes that the process has had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    model = load(job)
    found = train(model, job)
    found |= evaluate(model, job)
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
