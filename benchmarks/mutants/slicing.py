"""The basis, and the weights in it."""

from __future__ import annotations

from benchmarks.mutants._base import Groups

GROUPS: Groups = {
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
}
