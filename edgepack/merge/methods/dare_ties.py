"""DARE with the sign election of TIES: (arXiv 2311.03099) and (arXiv 2306.01708), algorithm 1.
The paper rescales by 1 / density; `_sparsify` says what mergekit and this do."""

from edgepack.merge.methods import _sparsify, _task_vectors

PLUGIN = _task_vectors.method(
    "dare_ties",
    "random differences to the base, rescaled, of the elected sign, added",
    sparsify=_sparsify.random,
    elect_signs=True,
    rescale=True,
    random=True,
)
