"""The choice of formats and ranks for a size."""

from __future__ import annotations

from benchmarks.mutants._base import Groups

GROUPS: Groups = {
    ("allocate/knapsack.py", "tests/allocate/test_allocate.py"): {
        "bytes left over are not spent": ("return _fill(options, chosen, left)", "return chosen"),
        "the smallest improvement is bought with what is left": (
            "_, name, option = max(found, key=lambda step: step[:2])",
            "_, name, option = min(found, key=lambda step: step[:2])",
        ),
        "what is left may be overspent by a byte": (
            "if option.nbytes - chosen[name].nbytes <= left and",
            "if option.nbytes - chosen[name].nbytes <= left + 1 and",
        ),
        "steps by gain, not by gain per byte": (
            "(a.cost - b.cost) / (b.nbytes - a.nbytes) if b.nbytes > a.nbytes else",
            "(a.cost - b.cost) if b.nbytes > a.nbytes else",
        ),
        "the hull keeps what is above it": (
            "while len(kept) > 1 and _gain(kept[-2], kept[-1]) <= _gain(kept[-2], option):",
            "while False:",
        ),
        "the first step that does not fit is the last": (
            "            _push(steps, hulls, name, index)\n    return",
            "            _push(steps, hulls, name, index)\n        else:\n"
            "            break\n    return",
        ),
        "what is left shrinks twice": (
            "        left -= option.nbytes",
            "        left -= 2 * option.nbytes",
        ),
    },
    ("allocate/costs.py", "tests/allocate/test_allocate.py"): {
        "costs are those of the calibration tokens": (
            "return quadratic_cost(E, H.held_out, H.out_held_out)",
            "return quadratic_cost(E, H.train, H.out_train)",
        ),
        "costs ignore the output side": (
            "return quadratic_cost(E, H.held_out, H.out_held_out)",
            "return quadratic_cost(E, H.held_out)",
        ),
        "the half is missing": ("/ (2 * len(W))", "/ len(W)"),
        "some rows do not stand for all": (
            "self.kl = share / (2 * len(W))",
            "self.kl = 1 / (2 * len(W))",
        ),
        "rounding in trials ignores the output side": (
            "shared = metric(H.train, fmt.block_size, self.item.damping, H.out_train, fmt.group)",
            "shared = metric(H.train, fmt.block_size, self.item.damping, None, fmt.group)",
        ),
        "ranks are tried at every size of Q": (
            "if f.bits_per_weight < MAX_BITS_FOR_RANKS",
            "if f.bits_per_weight < 99",
        ),
        "factors in trials are f16 whatever is asked": (
            "refit(W, H, Q, rank, self.item.factors)",
            'refit(W, H, Q, rank, "f16")',
        ),
    },
    ("allocate/budget.py", "tests/allocate/test_budget.py tests/allocate/test_allocate.py"): {
        "headers of factors are not made up for": ("        if over <= 0:", "        if True:"),
        "padding and headers count as nothing": (
            "overhead = size_of(smallest) - _matrices(smallest)",
            "overhead = 2 * (size_of(smallest) - _matrices(smallest))",
        ),
        "an override's rank does not stand": (
            "wanted_ranks = ranks if wanted.rank is None else [wanted.rank]",
            "wanted_ranks = ranks",
        ),
        "factors take no bytes": (
            "nbytes = formats.get(name).nbytes(spec.shape) + factor_bytes(spec, fmt)",
            "nbytes = formats.get(name).nbytes(spec.shape)",
        ),
        "bits per weight leave the embeddings out": (
            ".numel for name in specs)",
            ".numel for name in specs if 'layers' in name)",
        ),
        "the plain control has ranks as well": (
            "[o for o in found if not o.rank] or found for",
            "found for",
        ),
    },
}
