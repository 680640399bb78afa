"""What adapters do to weights, and which base they belong to."""

from __future__ import annotations

from benchmarks.mutants._base import Groups

GROUPS: Groups = {
    ("adapters/adapter.py", "tests/adapters/test_files.py"): {
        "balancing the wrong way": (
            "self.lora_A / scale[:, None], self.lora_B * scale)",
            "self.lora_A / scale[:, None], self.lora_B / scale)",
        ),
        "no balancing": ("(ratio.log2() / 2).round().clamp(-60, 60)", "ratio * 0"),
        "all of the scale on one side": ("self.lora_B * root)", "self.lora_B * scale)"),
    },
    ("adapters/peft.py", "tests/adapters/test_files.py"): {
        "rslora like LoRA": ("math.sqrt(rank) if self.use_rslora else rank", "rank"),
        "alpha_pattern left out": (
            "key = _matching(self.alpha_pattern or {}, module)",
            "key = None",
        ),
        "initialisers that change the base": (
            '("pissa", "olora", "corda", "lora_ga", "loftq")',
            '("olora",)',
        ),
        "any shapes": (
            "if not rank or A.shape != (rank, shape[1]) or B.shape != (shape[0], rank):",
            "if not rank:",
        ),
    },
    ("adapters/files.py", "tests/adapters/test_files.py"): {
        "any base": ("if stored.digest != base.identity.digest:", "if False:"),
        "another name without a note": ("if stored.name != base.name:", "if False:"),
        "files not checked": ("check_files(path, described)", "pass"),
    },
    ("adapters/gguf_factors.py", "tests/adapters/test_files.py"): {
        "llama.cpp's alpha left out": (
            "return alpha / self.ranks[name] if alpha else 1.0",
            "return 1.0",
        ),
        "rows of L as in the file": ("L.permute_rows(torch.argsort(order))", "L"),
    },
    ("adapters/combine.py", "tests/adapters/test_combine.py"): {
        "TIES without an election": ("agrees = kept.sign() == sign", "agrees = kept != 0"),
        "TIES with sums": ("/ agrees.sum(0).clamp(min=1)", ""),
        "TIES keeps everything": ("int(density * tensor.numel())", "tensor.numel()"),
        "negative scales on both sides": (
            "([lora.lora_B for lora, _ in parts], roots)",
            "([lora.lora_B for lora, _ in parts], signed)",
        ),
    },
    ("runtimes/_llama_adapters.py", "tests/runtimes/test_adapters.py"): {
        "the factors stay beside those that replace them": (
            "factors = 1.0 - sum(scale for replaces, scale in replacing if replaces)",
            "factors = 1.0",
        ),
        "scales are not set": (
            "[(lora, scale) for lora, scale in every if scale]",
            "[(lora, 1.0) for lora, scale in every]",
        ),
    },
    ("runtimes/onnx_adapters.py", "tests/runtimes/test_adapters.py"): {
        "scales left out": ("(a, np.multiply(b, scale, dtype=np.float32))", "(a, b)"),
    },
    ("adapter_merge/merge.py", "tests/adapter_merge/test_merge.py"): {
        "a second merge forgets the first": (
            'if artifact.manifest["merged"]:\n        return None',
            "if False:\n        return None",
        ),
        "kept H is not used": ("return KeptHessians(folder, objective) if", "return None if"),
        "factors stay": ("if merge_factors or not about", "if not about"),
    },
    ("adapter_merge/stage.py", "tests/adapter_merge/test_merge.py"): {
        "ΔW is left out": ("return W + self._deltas[name].delta() if", "return W if"),
        "all weights are rounded again": (
            "if name not in self.changed and not",
            "if False and not",
        ),
    },
    ("export/merge_factors.py", "tests/export/test_merge_factors.py"): {
        "what was recovered is not rounded": (
            'model = Packed(plan.model, load, {"recovered": recovered.key})',
            "pass",
        ),
    },
}
