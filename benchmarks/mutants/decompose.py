"""CALDERA, the L·R step, error feedback."""

from __future__ import annotations

from benchmarks.mutants._base import Groups

GROUPS: Groups = {
    (
        "decompose/caldera.py",
        "tests/decompose/test_caldera.py tests/decompose/test_brute_force.py",
    ): {
        "Q is rounded in H instead of the down-dated metric": (
            "free = downdate(H.train, R.dequantize())",
            "free = H.train",
        ),
        "L and R of the round before are kept": (
            "return Q, *refit(W, H, Q, L.shape[1], factors)",
            "return Q, L, R",
        ),
        "plain rounding with its own L and R is no candidate": (
            "candidates = [FactoredWeight(start.Q, *refit(W, H, start.Q, rank, factors))]",
            "candidates = []",
        ),
        "the first L and R ignore the output side": (
            "L, R = low_rank(W, H.train, rank, factors, H.out_train)",
            "L, R = low_rank(W, H.train, rank, factors)",
        ),
        "the last L and R ignore the output side": (
            "return low_rank(W - Q.dequantize(), H.train, rank, factors, H.out_train)",
            "return low_rank(W - Q.dequantize(), H.train, rank, factors)",
        ),
        "Q of a round ignores the output side": (
            "return metric(free, fmt.block_size, damping, H.out_train, fmt.group)",
            "return metric(free, fmt.block_size, damping, None, fmt.group)",
        ),
        "calibration tokens choose, not held-out ones": (
            "return self._cost(self._rest(weight), True) / self._whole_held_out",
            "return self._cost(self._rest(weight), False) / self._whole_train",
        ),
        "the held-out choice ignores the output side": (
            "out = self.H.out_held_out if held_out else self.H.out_train",
            "out = None if held_out else self.H.out_train",
        ),
        "the last round ships, not the best": (
            "return min(candidates, key=judge.held_out)",
            "return candidates[-1]",
        ),
        "the first damping is taken": (
            "best = min(found, key=lambda d: judge.held_out(found[d]))",
            "best = next(iter(found))",
        ),
        "rounding without factors ignores the output side": (
            "ldlq(W, metric(H.train, fmt.block_size, d, H.out_train, fmt.group), fmt)",
            "ldlq(W, metric(H.train, fmt.block_size, d, None, fmt.group), fmt)",
        ),
        "rounds use another damping than the chosen": (
            "Q, L, R = next_round(W, H, fmt, L, R, factors, damping)",
            "Q, L, R = next_round(W, H, fmt, L, R, factors, 1.0)",
        ),
        "what is worse than plain rounding ships": (
            "if found.error <= error_plain:",
            "if True:",
        ),
        "plain rounding ignores the importance of columns": (
            "plain = FactoredWeight(fmt.quantize(W, H.train.diagonal()))",
            "plain = FactoredWeight(fmt.quantize(W))",
        ),
    },
    ("decompose/low_rank.py", "tests/decompose/test_low_rank.py"): {
        "C⁻ᵀ is forgotten with a full output side": (
            "return torch.linalg.solve_triangular(C.T, vectors, upper=False), vectors.T @ A",
            "return vectors, vectors.T @ A",
        ),
        "vectors of A instead of CᵀA": (
            "    A = C.T @ A\n    vectors = top_left_singular_vectors(A, H, rank)",
            "    vectors = top_left_singular_vectors(A, H, rank)\n    A = C.T @ A",
        ),
        "the diagonal is not divided out of L": (
            "return vectors / c, vectors.T @ (c * A)",
            "return vectors, vectors.T @ (c * A)",
        ),
        "vectors of A instead of cA": (
            "vectors = top_left_singular_vectors(c * A, H, rank)",
            "vectors = top_left_singular_vectors(A, H, rank)",
        ),
        "a diagonal output side is not damped": (
            "c = (H_out.double() + OUT_DAMPING).sqrt()[:, None]",
            "c = H_out.double().sqrt()[:, None]",
        ),
        "a full output side is not damped": (
            "C = upper_factor(damp(H_out, OUT_DAMPING))",
            "C = upper_factor(damp(H_out, 1e-9))",
        ),
        "low_rank ignores the output side": (
            "R = _round(exact_low_rank(A, H, rank, H_out)[1], H, factors)",
            "R = _round(exact_low_rank(A, H, rank)[1], H, factors)",
        ),
        "L is solved for as if inputs were white": (
            "RH = matmul64(R_shipped, H)",
            "RH = R_shipped",
        ),
        "L is solved for the R before rounding": (
            "R_shipped = R.dequantize().double()",
            "R_shipped = exact_low_rank(A, H, rank, H_out)[1]",
        ),
        "R is rounded as if inputs were white": (
            "R = _round(exact_low_rank(A, H, rank, H_out)[1], H, factors)",
            "R = _round(exact_low_rank(A, H, rank, H_out)[1], torch.eye(len(H)), factors)",
        ),
        "L is rounded without the output side": (
            "return _round(L, gram, factors, H_out), R",
            "return _round(L, gram, factors), R",
        ),
        "L is rounded as if R were orthonormal": (
            "return _round(L, gram, factors, H_out), R",
            "return _round(L, torch.eye(len(gram)), factors, H_out), R",
        ),
        "the down-date takes half": (
            "H[rows].double() - RH[:, rows].T @ explained",
            "H[rows].double() - 0.5 * RH[:, rows].T @ explained",
        ),
    },
    (
        "decompose/ldlq.py",
        "tests/decompose/test_ldlq.py::test_columns_are_taken_by_blocks_in_descending_weight "
        "tests/decompose/test_ldlq.py::test_scales_are_fitted_to_the_cost_that_feedback_leaves "
        "tests/decompose/test_ldlq.py::test_every_round_of_descent_counts "
        "tests/decompose/test_two_sided.py tests/decompose/test_brute_force.py",
    ): {
        "all columns are equally important to the scales": (
            "importance = how.importance(U)[in_storage]",
            "importance = torch.ones(size)",
        ),
        "importances stand in the order of processing": (
            "importance = how.importance(U)[in_storage]",
            "importance = how.importance(U)",
        ),
        "the output side is hardly damped": ("OUT_DAMPING = 0.3", "OUT_DAMPING = 0.003"),
        "no feedback into later blocks": (
            "effect[:, after] += errors @ m.U[here, after]",
            "pass",
        ),
        "no feedback into later rows of the same tile": (
            "_block(fmt, x, U, m.U_out[tile, tile], columns % size)",
            "_block(fmt, x, U, torch.eye(len(x)) if len(m.rows) else m.U_out[tile, tile], "
            "columns % size)",
        ),
        "effects of a row on itself are left out": (
            "before = slice(0, tile.stop)",
            "before = slice(0, tile.start)",
        ),
        "errors of a tile do not reach the next": (
            "effect[tile, here] += errors[tile] @ U",
            "pass",
        ),
        "rows in ascending order": (
            "rows = damped_diagonal(H_out, OUT_DAMPING).argsort(descending=True, stable=True)",
            "rows = damped_diagonal(H_out, OUT_DAMPING).argsort(stable=True)",
        ),
        "blocks in ascending order": (
            "blocks = by_group.sum(1).argsort(descending=True, stable=True)",
            "blocks = by_group.sum(1).argsort(stable=True)",
        ),
        "columns of a block in ascending order": (
            "inside = by_group.argsort(dim=1, descending=True, stable=True)",
            "inside = by_group.argsort(dim=1, stable=True)",
        ),
        "coordinate descent does not follow its own changes": (
            "effect[tile] += (block[2] - old) @ m.H[here]",
            "pass",
        ),
        "one round of descent instead of two": (
            "for start in [*range(0, W.shape[1], size)] * passes:",
            "for start in range(0, W.shape[1], size):",
        ),
        "the output side of descent is the identity inside a tile": (
            "how.descend(gradient, m.H[here, here], m.H_out[tile, tile], affine, block)",
            "how.descend(gradient, m.H[here, here], torch.eye(len(gradient)) if len(m.rows) else "
            "m.H_out[tile, tile], affine, block)",
        ),
        "rows come back in the order of processing": (
            "return _ldlq(W[m.rows], m, fmt, passes).permute_rows(back)",
            "return _ldlq(W[m.rows], m, fmt, passes)",
        ),
    },
    (
        "decompose/_rounders.py",
        "tests/decompose/test_ldlq.py::test_scales_are_fitted_to_the_cost_that_feedback_leaves "
        "tests/decompose/test_ldlq.py::test_a_group_of_columns_is_as_important_as_its_errors_are_after_feedback",
    ): {
        "importances are 1/U instead of 1/U²": (
            "return U.diagonal() ** -2",
            "return U.diagonal() ** -1",
        ),
        "importances of a group are its diagonal's": (
            "return self._inverse(U).square().sum(2).flatten()",
            "return U.diagonal() ** -2",
        ),
    },
}
