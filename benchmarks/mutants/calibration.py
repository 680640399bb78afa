"""H and its output side."""

from __future__ import annotations

from benchmarks.mutants._base import Groups

GROUPS: Groups = {
    (
        "calibration/moments.py",
        "tests/calibration/test_moments.py tests/calibration/test_sweep.py",
    ): {
        "a tied head's rows are forgotten": (
            "rows = share * embedding.out_train + (1 - share) * head.out_train",
            "rows = embedding.out_train",
        ),
        "the embeddings' rows are forgotten": (
            "rows = share * embedding.out_train + (1 - share) * head.out_train",
            "rows = head.out_train",
        ),
        "rows of head and embeddings count alike": (
            "share = embedding.train.trace() / (embedding.train + head.train).trace()",
            "share = 0.5",
        ),
        "a tied matrix is looked up only": (
            "return own if head is None else _both(own, head)",
            "return own",
        ),
        "held-out sums are divided by the training tokens": (
            "count = self.sums.get((name + suffix, held_out)), self.tokens[held_out]",
            "count = self.sums.get((name + suffix, held_out)), self.tokens[False]",
        ),
        "held-out tokens are in the imatrix": (
            "if held_out or name.endswith(OUT):",
            "if name.endswith(OUT):",
        ),
        "output sides of held-out tokens are those of training": (
            '"out_held_out": (OUT, True),',
            '"out_held_out": (OUT, False),',
        ),
        "output sides keep their size": (
            "yield side, gram, (count, mean)",
            "yield side, gram, (count,)",
        ),
        "untied embeddings have the head's as well": (
            "head = load_hessian(folder / HEAD, HEAD) if tied else None",
            "head = load_hessian(folder / HEAD, HEAD)",
        ),
    },
    ("calibration/gram.py", "tests/calibration/test_moments.py"): {
        "token weights count twice": (
            "left = left * weight[:, None]",
            "left = left * weight[:, None].square()",
        ),
        "what is below the diagonal is kept as well": (
            "yield torch.cat([row[i:].float() for i, row in enumerate(rows)])",
            "yield torch.cat([row.float() for row in rows])",
        ),
    },
    ("calibration/passes.py", "tests/calibration/test_sweep.py"): {
        "no token's weight is bounded": (
            "return weights.clamp_max(MAX_TOKEN_WEIGHT * typical)",
            "return weights",
        ),
        "labels are not subtracted": (
            "g.scatter_add_(1, drawn, torch.full(drawn.shape, -1.0, device=g.device))",
            "pass",
        ),
        "the head's rows do not count the inputs' size": (
            "(normed.square().sum(-1) @ squares).double() if with_rows",
            "squares.sum(0).double() if with_rows",
        ),
        "gradients are not weighted by the inputs' size": (
            "moments.adding(role + OUT, grads, weights, held_out)",
            "moments.adding(role + OUT, grads, None, held_out)",
        ),
        "embeddings' gradients are not clipped": (
            "moments.adding(EMBEDDING, gradient, clip, run.held_out)",
            "moments.adding(EMBEDDING, gradient, None, run.held_out)",
        ),
        "the final norm passes gradients as it is": (
            "gradient = torch.autograd.grad(normed, x, at_norm)[0]",
            "gradient = at_norm",
        ),
    },
    ("calibration/work.py", "tests/calibration/test_sweep.py"): {
        "panels are added in the order of their names": (
            "for key in sorted(file.keys(), key=_order):",
            "for key in file.keys():",
        ),
    },
    ("calibration/sweep.py", "tests/calibration/test_sweep.py"): {
        "unseen tokens count for nothing": (
            "path, counts + 0.5)",
            "path, counts)",
        ),
        "occurrences in held-out text count": (
            "torch.bincount(self.tokens.train.flatten(), minlength=vocabulary)",
            "torch.bincount(self.tokens.all.flatten(), minlength=vocabulary)",
        ),
        "every pass but the last writes the gradient": (
            "last = number == len(passes)",
            "last = number < len(passes)",
        ),
    },
}
