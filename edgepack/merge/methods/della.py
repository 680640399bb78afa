"""DELLA: "DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling"
(arXiv 2406.11617): drop by rank of magnitude, elect signs, fuse.

The paper rescales each element by its own 1 / (1 − p); `_sparsify` says what mergekit and this do.
"""

from edgepack.merge.methods import _sparsify, _task_vectors

PLUGIN = _task_vectors.method(
    "della",
    "differences to the base, drawn by magnitude, of the elected sign, averaged",
    _sparsify.EPSILON,
    sparsify=_sparsify.by_rank,
    elect_signs=True,
    normalize=True,
    rescale=True,
    random=True,
    masks=True,
    check=_sparsify.check_epsilon,
)
