"""Low-bit products: rounding, splitting, sampling, and what a frozen matrix is multiplied in."""

from __future__ import annotations

from benchmarks.mutants._base import Groups

INT4 = "tests/finetune/int4"
GROUPS: Groups = {
    ("finetune/int4/lsq.py", f"{INT4}/test_lsq.py"): {
        "one more code below": ("clamp_(-Q, Q)", "clamp_(-Q - 1, Q)"),
        "the step's gradient is not scaled": (
            "of_step = (gradient * slope).sum() / math.sqrt(Q * x.numel())",
            "of_step = (gradient * slope).sum()",
        ),
        "clamped numbers do not move the step": ("ratio.sign() * Q)", "ratio * 0)"),
        "clamped numbers pass their gradient": ("gradient * inside, of_step", "gradient, of_step"),
        "a negative step is zero": (
            "step.abs().clamp_min(SMALLEST), bits",
            "step.clamp_min(SMALLEST), bits",
        ),
    },
    ("finetune/int4/hadamard.py", f"{INT4}/test_hadamard.py"): {
        "wide blocks are left in the order of their factors": (
            "return across.reshape(-1, _INNER, outer).transpose(1, 2).reshape(x.shape)",
            "return across.reshape(x.shape)",
        ),
        "only the error of x chooses the block": (
            "_rounding_error(x, block, bits) * _rounding_error(W, block, bits)",
            "_rounding_error(W, block, bits)",
        ),
        "the widest block": ("return min(block_sizes(x.shape[1]), key=error)", "return 32"),
    },
    ("finetune/int4/sampling.py", f"{INT4}/test_sampling.py"): {
        "rounding to the nearest": (
            "return noise.to(x.device).add_(x).floor_()",
            "return x.round()",
        ),
        "halves in proportion 14": ("BASE = 2 * HALF + 1", "BASE = 2 * HALF"),
        "terms are not divided by p": ("(g.steps / p)[kept, None]", "g.steps[kept, None]"),
        "the budget is not kept": (
            "share = (budget - certain) * ordered",
            "share = budget * ordered",
        ),
        "rows of x do not count": ("g.norms() * lengths.repeat(2)", "g.norms()"),
        "halves have one step": (
            "torch.cat([self.step.mul(BASE), self.step])",
            "torch.cat([self.step, self.step])",
        ),
        "a row that is not a number is dropped": ("~(chance.to(p.device) >= p)", "(chance < p)"),
        "the seed keeps 32 bits": (
            'int.from_bytes(digest[:4], "little")',
            "numbers[0] * 2**32 + numbers[1]",
        ),
        "no step by row": ("if by_row else", "if False else"),
    },
    ("finetune/int4/linear.py", f"{INT4}/test_linear.py"): {
        "every batch draws the same": ("self.batches += 1", "self.batches += 0"),
        "the seed is ignored": ("numbers = (self.seed, ", "numbers = (0, "),
        "all rows are kept": (
            "ctx.sampled, ctx.numbers = sampled",
            "ctx.sampled, ctx.numbers = False",
        ),
        "no Hadamard matrix": (
            'if self.quantizer == "hq" else 1',
            'if self.quantizer == "" else 1',
        ),
        "the block is chosen anew by a loaded layer": (
            'self.register_buffer("block", count)',
            'self.register_buffer("block", count, persistent=False)',
        ),
        "steps are never estimated again": (" or (self.training and ", " or (False and "),
        "kept layers are converted": ("if name not in keep", "if name"),
        "all layers have one seed": ("seed=seed + place", "seed=seed"),
        "no bias": ("y = y + self.bias", "pass"),
    },
    ("finetune/int8.py", "tests/finetune/test_int8.py tests/finetune/test_arithmetic.py"): {
        "the largest negative number does not count": (
            "torch.maximum(x.amax(1, keepdim=True), -x.amin(1, keepdim=True))",
            "x.amax(1, keepdim=True)",
        ),
        "the probe's sums are small": ("a[0], a[1] = LARGEST, -LARGEST", "a = a % 2"),
        "all parts are the first": ("integers[i : i + rows] =", "integers[0:rows] ="),
        "rows are not padded": ("more_n = max(CUDA_ROWS - n, ", "more_n = max(0, "),
    },
    ("finetune/arithmetic.py", "tests/finetune/test_arithmetic.py"): {
        "large columns count twice": ("x.index_fill(1, outliers, 0)", "x"),
        "scales of W are forgotten backward": (
            "row_codes(g * W_scale.T, generator)",
            "row_codes(g, generator)",
        ),
        "INT8 rounds g to the nearest": ("if self.stochastic else None", "if False else None"),
        "the gradient stays rotated": (
            "return rotate(gradient, widest_block(W.shape[1]))",
            "return gradient",
        ),
        "a step is not its number": ("self.step, self.calls = step, 0", "self.calls = 0"),
        "calls of a step draw the same": ("self.calls += 1", "pass"),
        "no probe": ("return usable and is_exact(device)", "return usable"),
        "a fallback says nothing": (
            "return Float32(note=",
            "return Float32() if device else Float32(note=",
        ),
    },
}
