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
            "return None if total is None else total / self.tokens[held_out]",
            "return None if total is None else total / self.tokens[False]",
        ),
        "token weights count twice": (
            "x = x * weight.reshape(-1, 1).sqrt()",
            "x = x * weight.reshape(-1, 1)",
        ),
        "held-out tokens are in the imatrix": (
            "if not held_out and not name.endswith(OUT):",
            "if not name.endswith(OUT):",
        ),
        "output sides of held-out tokens are those of training": (
            "outs = (self._mean(name + OUT, part) for part in (False, True))",
            "outs = (self._mean(name + OUT, False) for part in (False, True))",
        ),
        "untied embeddings have the head's as well": (
            "head = load_hessian(folder / HEAD, HEAD) if tied else None",
            "head = load_hessian(folder / HEAD, HEAD)",
        ),
    },
    ("calibration/sweep.py", "tests/calibration/test_sweep.py"): {
        "no token's weight is bounded": (
            "return weights.clamp_max(MAX_TOKEN_WEIGHT * weights.mean())",
            "return weights",
        ),
        "labels are not subtracted": (
            "g.scatter_add_(1, labels, torch.full(labels.shape, -1.0))",
            "pass",
        ),
        "the head's rows do not count the inputs' size": (
            "moments.add_rows(HEAD, (normed.square().sum(-1) @ squares).double())",
            "moments.add_rows(HEAD, squares.sum(0).double())",
        ),
        "gradients are not weighted by the inputs' size": (
            "moments.add(role + OUT, grad, token_weights(x_in), batch.held_out)",
            "moments.add(role + OUT, grad, None, batch.held_out)",
        ),
        "unseen tokens count for nothing": (
            "moments.add_rows(EMBEDDING, counts + 0.5)",
            "moments.add_rows(EMBEDDING, counts)",
        ),
        "occurrences in held-out text count": (
            "counts = torch.bincount(tokens.train.flatten(), minlength=vocabulary).double()",
            "counts = torch.bincount(tokens.all.flatten(), minlength=vocabulary).double()",
        ),
        "embeddings' gradients are not clipped": (
            "moments.add(EMBEDDING, gradient, clip, batch.held_out)",
            "moments.add(EMBEDDING, gradient, None, batch.held_out)",
        ),
        "the final norm passes gradients as it is": (
            "return torch.autograd.grad(normed, x, at_norm)[0]",
            "return at_norm",
        ),
    },
}
