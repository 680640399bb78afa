"""KL and perplexity."""

from __future__ import annotations

from benchmarks.mutants._base import Groups

GROUPS: Groups = {
    ("metrics/divergence.py", "tests/metrics/test_divergence.py"): {
        "the whole chunk is scored": (
            "in candidates}\n    first = chunks.shape[1] // 2",
            "in candidates}\n    first = 0",
        ),
        "the divergence is the other way round": ("p.exp() * (p - q)", "q.exp() * (q - p)"),
        "losses in float32": (
            "q = torch.log_softmax(torch.from_numpy(candidate[rows]), -1, dtype=torch.float64)",
            "q = torch.log_softmax(torch.from_numpy(candidate[rows]), -1).double()",
        ),
        "BOS pushes the text along": ("chunks[:, 0] = runtime.bos", "pass"),
        "the incomplete end is scored": (
            "tokens[: len(tokens) // context * context]",
            "np.resize(tokens, -(-len(tokens) // context) * context)",
        ),
        "the error of perplexity is that of its logarithm": (
            "return Perplexity(nll.size, value, value * standard_error(nll))",
            "return Perplexity(nll.size, value, standard_error(nll))",
        ),
        "the thousandth is the hundredth": (
            "np.quantile(self.kl, 0.999)",
            "np.quantile(self.kl, 0.99)",
        ),
        "the reference's targets are the candidate's": (
            "-p.gather(1, target).squeeze(1),",
            "-q.gather(1, target).squeeze(1),",
        ),
        "perplexity alone scores the whole chunk": (
            "in models}\n    first = chunks.shape[1] // 2",
            "in models}\n    first = 0",
        ),
    },
}
