"""The breaks of `benchmarks.mutations`: (file, tests that should notice) → what is broken → (text
as it is, text instead)."""

from __future__ import annotations

Changes = dict[str, tuple[str, str]]

GROUPS: dict[tuple[str, str], Changes] = {
    (
        "decompose/caldera.py",
        "tests/decompose/test_caldera.py tests/decompose/test_brute_force.py",
    ): {
        "Q is rounded in H instead of the down-dated metric": (
            "free = downdate(H.train, R.dequantize())",
            "free = H.train",
        ),
        "L and R of the round before are kept": (
            "return Q, *low_rank(rest, H.train, L.shape[1], factors, H.out_train)",
            "return Q, L, R",
        ),
        "plain rounding with its own L and R is no candidate": (
            "candidates = [FactoredWeight(start.Q, *low_rank(rest, H.train, rank, factors, "
            "H.out_train))]",
            "candidates = []",
        ),
        "the first L and R ignore the output side": (
            "L, R = low_rank(W, H.train, rank, factors, H.out_train)",
            "L, R = low_rank(W, H.train, rank, factors)",
        ),
        "the last L and R ignore the output side": (
            "*low_rank(rest, H.train, L.shape[1], factors, H.out_train)",
            "*low_rank(rest, H.train, L.shape[1], factors)",
        ),
        "Q of a round ignores the output side": (
            "down = metric(free, fmt.block_size, damping, H.out_train, fmt.group)",
            "down = metric(free, fmt.block_size, damping, None, fmt.group)",
        ),
        "calibration tokens choose, not held-out ones": (
            "return relative_error(W, weight.dense(), H.held_out, H.out_held_out)",
            "return relative_error(W, weight.dense(), H.train, H.out_train)",
        ),
        "the held-out choice ignores the output side": (
            "return relative_error(W, weight.dense(), H.held_out, H.out_held_out)",
            "return relative_error(W, weight.dense(), H.held_out)",
        ),
        "the error that is reported ignores the output side": (
            "held_out = relative_error(W, dense, H.held_out, H.out_held_out)",
            "held_out = relative_error(W, dense, H.held_out)",
        ),
        "the last round ships, not the best": (
            "return min(candidates, key=lambda c: _held_out(W, c, H))",
            "return candidates[-1]",
        ),
        "the first damping is taken": (
            "best = min(found, key=lambda d: _held_out(W, found[d], H))",
            "best = next(iter(found))",
        ),
        "rounding without factors ignores the output side": (
            "d: metric(H.train, fmt.block_size, d, H.out_train, fmt.group) for d in damping",
            "d: metric(H.train, fmt.block_size, d, None, fmt.group) for d in damping",
        ),
        "rounds use another damping than the chosen": (
            "Q, L, R = next_round(W, H, fmt, L, R, factors, damping)",
            "Q, L, R = next_round(W, H, fmt, L, R, factors, 1.0)",
        ),
        "what is worse than plain rounding ships": (
            "return found if found.error <= error_plain else",
            "return found if True else",
        ),
        "plain rounding ignores the importance of columns": (
            "plain = FactoredWeight(fmt.quantize(W, H.train.diagonal()))",
            "plain = FactoredWeight(fmt.quantize(W))",
        ),
    },
    ("decompose/low_rank.py", "tests/decompose/test_low_rank.py"): {
        "C⁻ᵀ is forgotten with a full output side": (
            "return torch.linalg.solve_triangular(C.T, vectors, upper=True), vectors.T @ (C.T @ A)",
            "return vectors, vectors.T @ (C.T @ A)",
        ),
        "vectors of A instead of CᵀA": (
            "vectors = top_left_singular_vectors(C.T @ A, H, rank)",
            "vectors = top_left_singular_vectors(A, H, rank)",
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
            "C = torch.linalg.cholesky(damp(H_out, OUT_DAMPING))",
            "C = torch.linalg.cholesky(damp(H_out, 1e-9))",
        ),
        "low_rank ignores the output side": (
            "R = _round(exact_low_rank(A, H, rank, H_out)[1], H, factors)",
            "R = _round(exact_low_rank(A, H, rank)[1], H, factors)",
        ),
        "L is solved for as if inputs were white": (
            "RH = R_shipped @ H.double()",
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
            "down = H - RH.T @ solve_up_to_rounding(",
            "down = H - 0.5 * RH.T @ solve_up_to_rounding(",
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
            "rows = H_out.diagonal().argsort(descending=True, stable=True)",
            "rows = H_out.diagonal().argsort(stable=True)",
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
            "self.H.train, fmt.block_size, damping, self.H.out_train, fmt.group",
            "self.H.train, fmt.block_size, damping, None, fmt.group",
        ),
        "ranks are tried at every size of Q": (
            "fmt.bits_per_weight < MAX_BITS_FOR_RANKS:",
            "fmt.bits_per_weight < 99:",
        ),
        "factors in trials are f16 whatever is asked": (
            "next_round(W, H, fmt, *self.first[rank], how.factors, how.damping)",
            'next_round(W, H, fmt, *self.first[rank], "f16", how.damping)',
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
    ("recover/adam.py", "tests/recover/test_adam.py"): {
        "the mean is not corrected for its start": (
            "mean = self.first / (1 - FIRST ** (step + 1))",
            "mean = self.first",
        ),
        "the square is not corrected for its start": (
            "square = self.second / (1 - SECOND ** (step + 1))",
            "square = self.second",
        ),
        "corrections are a step late": (
            "mean = self.first / (1 - FIRST ** (step + 1))",
            "mean = self.first / (1 - FIRST ** (step + 2))",
        ),
        "both moments decay alike": (
            "self.second.lerp_(gradient.square(), 1 - SECOND)",
            "self.second.lerp_(gradient.square(), 1 - FIRST)",
        ),
        "no root of the square": ("(square.sqrt() + EPSILON)", "(square + EPSILON)"),
        "a factor's size is taken along the other side": (
            'mean(0 if part == "L" else 1, keepdim=True)',
            'mean(1 if part == "L" else 0, keepdim=True)',
        ),
        "small scales are moved by their own size only": (
            "return magnitude.maximum(magnitude.mean(1, keepdim=True) / 2)",
            "return magnitude",
        ),
        "the rate falls in a line": (
            "return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))",
            "return 1 - (step - warm) / max(1, steps - warm)",
        ),
        "no warm-up": ("return (step + 1) / warm", "return 1.0"),
    },
    ("recover/training.py", "tests/recover/test_adam.py"): {
        "gradients are not clipped": (
            "clip, rate = min(1.0, settings.clip / max(norm, 1e-30)), self.rate",
            "clip, rate = 1.0, self.rate",
        ),
        "gradients are not those of shares": (
            "gradient.mul_(sizes[key])  # the gradient with respect to relative "
            "changes of the part",
            "pass",
        ),
        "steps are not shares": (
            "reach = rate * settings.rate(part) * sizes[name, part]",
            "reach = rate * settings.rate(part)",
        ),
        "uphill": (
            "masters[name][part] -= reach * moments.update(clip * gradient, since)",
            "masters[name][part] += reach * moments.update(clip * gradient, since)",
        ),
        "corrections do not begin again after a setback": (
            "since = self.report.steps - max(self.report.setbacks, default=0)",
            "since = self.report.steps",
        ),
        "a setback slows nothing": (
            "return distance * planned / 3.0 ** len(report.setbacks)",
            "return distance * planned",
        ),
        "a setback is gone on from": (
            "            self.student.masters = _map(self.best, _copy)\n",
            "            pass\n",
        ),
        "moments outlive a setback": (
            "            self.first, self.second = (_map(self.best, _zeros) for _ in range(2))\n"
            "        if report",
            "        if report",
        ),
        "the distance to go does not matter": (
            "distance = min(1.0, math.sqrt(report.start))",
            "distance = 1.0",
        ),
        "norms learn at the rate of factors": (
            'return self.scales if part.startswith("Q.") else self.norms',
            'return self.scales if part.startswith("Q.") else self.factors',
        ),
    },
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
    ("formats/_search.py", "tests/formats/test_search.py"): {
        "what overflows becomes infinite": (
            "return scale.clamp(-FP16_MAX, FP16_MAX).to(torch.float16).to(torch.float32)",
            "return scale.to(torch.float16).to(torch.float32)",
        ),
        "the reciprocal of nothing is infinite": (
            "return torch.where(scale.abs() < TINY, 0.0, scale.reciprocal())",
            "return scale.reciprocal()",
        ),
        "weights are not normalised": (
            "return torch.where(mean > TINY, w / mean.clamp_min(TINY), 1.0)",
            "return w",
        ),
        "a block without weights counts for nothing": (
            "return torch.where(mean > TINY, w / mean.clamp_min(TINY), 1.0)",
            "return torch.where(mean > TINY, w / mean.clamp_min(TINY), 0.0)",
        ),
        "the worst first": (
            "error, order = error.sort(dim=1)",
            "error, order = error.sort(dim=1, descending=True)",
        ),
        "fields keep their old order": (
            "return error, *(pick(values, order) for values in fields)",
            "return error, *fields",
        ),
        "ratios of nothing": (
            "return torch.where(b > TINY, a / b.clamp_min(TINY), 0.0)",
            "return a / b",
        ),
    },
    ("formats/_scale_kernels.py", "tests/formats/test_search.py"): {
        "scales are fitted without weights": (
            "        lx += w[j] * x[j] * level\n        ll += w[j] * level * level",
            "        lx += x[j] * level\n        ll += level * level",
        ),
        "errors are counted without weights": (
            "first, last)]\n        error += w[j] * miss * miss",
            "first, last)]\n        error += miss * miss",
        ),
        "scales are not refitted": ("REFITS = 2", "REFITS = 0"),
        "the offset is not refitted to the rounded scale": (
            "d, m = _settled(xr, w, d, m, total, top)",
            "d, m = _half(d), _half(m)",
        ),
        "offsets above 0 though they are stored below": (
            "    if negative and offset > 0:\n        return _ratio(qx + mean * q1, qq), ZERO\n",
            "",
        ),
    },
    ("slicing/weights.py", "tests/slicing/test_weights.py"): {
        "the norms' width is not made up for": (
            "return torch.full((d,), 1 / c)",
            "return torch.ones(d)",
        ),
        "writes keep their size": (
            "return rotate_weight(W, role, c * Q if writes else Q, gain)",
            "return rotate_weight(W, role, Q, gain)",
        ),
        "embeddings keep their size": (
            'writes = role in START or role.partition(".")[0] in WRITE',
            'writes = role.partition(".")[0] in WRITE',
        ),
        "gains are lost": (
            "_by_rows(W, gain.double()[:, None] * Q)",
            "_by_rows(W, Q)",
        ),
        "gains are applied twice": (
            "_by_rows(W, gain.double()[:, None] * Q)",
            "_by_rows(W, gain.double()[:, None] ** 2 * Q)",
        ),
        "writers are turned the other way": (
            "return (Q.T @ W.double()).float()",
            "return ((Q if Q.shape[0] == Q.shape[1] else Q.T) @ W.double()).float()",
        ),
        "rotations in float32": (
            "torch.cat([(rows.double() @ Q).float() for rows in torch.split(W, _ROWS)])",
            "torch.cat([(rows.bfloat16().double() @ Q).float() for rows in torch.split(W, _ROWS)])",
        ),
    },
    ("slicing/basis.py", "tests/slicing/test_weights.py"): {
        "the smallest directions come first": (
            "vectors = torch.linalg.eigh(C.double()).eigenvectors.flip(1)",
            "vectors = torch.linalg.eigh(C.double()).eigenvectors",
        ),
        "directions in float32": (
            "vectors = torch.linalg.eigh(C.double()).eigenvectors.flip(1)",
            "vectors = torch.linalg.eigh(C.float()).eigenvectors.flip(1).double()",
        ),
        "signs are as they come": (
            "signed: Tensor = vectors * largest.sign()",
            "signed: Tensor = -vectors * largest.sign()",
        ),
        "the seed of a random turn is ignored": (
            "generator = torch.Generator().manual_seed(seed)",
            "generator = torch.Generator().manual_seed(0)",
        ),
        "a random turn is no rotation": (
            "kept = kept @ (R * upper.diagonal().sign())",
            "kept = kept @ normal / width**0.5",
        ),
        "a random turn is not uniform": (
            "kept = kept @ (R * upper.diagonal().sign())",
            "kept = kept @ R",
        ),
        "no Hadamard turn": (
            'return kept @ random_hadamard(width, seed) if orientation == "hadamard" else kept',
            "return kept",
        ),
        "the seed of a Hadamard turn is ignored": (
            "random_hadamard(width, seed)",
            "random_hadamard(width, 0)",
        ),
    },
    ("decompose/stage.py", "tests/planning/test_keys.py"): {
        "decompose without the damping": ('            "damping": list(self.damping),\n', ""),
        "decompose without the iterations": ('            "iterations": self.iterations,\n', ""),
        "decompose without what it was calibrated on": (
            "return (self.calibration.key if self.calibration else self.model.key,)",
            "return (self.model.key,)",
        ),
        "decompose without the formats": (
            '"formats": {name: vars(fmt) for name, fmt in self.chosen.formats.items()},',
            '"formats": list(self.chosen.formats),',
        ),
    },
    ("calibration/stage.py", "tests/planning/test_keys.py"): {
        "calibrate without its text": (
            "return (self.model.key, self.text.key)",
            "return (self.model.key,)",
        ),
        "calibrate without its model": (
            "return (self.model.key, self.text.key)",
            "return (self.text.key,)",
        ),
        "calibrate without its options": (
            'return self.calibrate.model_dump() | {"source": source}',
            "return {}",
        ),
        "the text without its options": ("return text_options(self.calibrate)", "return {}"),
        "the text without its model": ("return (self.original.key,)", "return ()"),
    },
    ("recover/stage.py", "tests/planning/test_keys.py"): {
        "recover without what it starts from": (
            "return (self.decomposed.key, self.calibration.key)",
            "return (self.calibration.key,)",
        ),
        "recover without its options": (
            "return self.recover.model_dump() | dict(self.arithmetic)",
            "return dict(self.arithmetic)",
        ),
    },
    ("allocate/stage.py", "tests/planning/test_keys.py"): {
        "allocate without what it tries": ("return asdict(self.tried)", "return {}"),
        "allocate without what it was calibrated on": (
            "return (self.calibration.key,)",
            "return (self.model.key,)",
        ),
    },
    ("slicing/stage.py", "tests/planning/test_keys.py"): {
        "the slice without its text": (
            "return (self.original.key, self.text.key)",
            "return (self.original.key,)",
        ),
        "the slice without its widths": ('"widths": list(self.widths),', '"widths": [],'),
        "the slice without its seed": (
            'OPTIONS = {"method", "covariance", "orientation", "seed", "slice_head"}',
            'OPTIONS = {"method", "covariance", "orientation", "slice_head"}',
        ),
    },
    ("recover/sliced.py", "tests/planning/test_keys.py"): {
        "fine-tuning without the slice": (
            "return (self.sliced.stage.key, self.original.key, self.text.key)",
            "return (self.original.key, self.text.key)",
        ),
    },
    ("core/stage.py", "tests/core/test_stage.py tests/planning/test_keys.py"): {
        "keys without inputs": (
            "content = [self.name, code, self.options(), list(self.inputs)]",
            "content = [self.name, code, self.options()]",
        ),
        "keys without options": (
            "content = [self.name, code, self.options(), list(self.inputs)]",
            "content = [self.name, code, list(self.inputs)]",
        ),
    },
}
