"""DELLA without the election of signs: (arXiv 2406.11617), steps "Drop" and "Fuse".

The paper rescales each element by its own 1 / (1 − p); `_sparsify` says what mergekit and this do.
"""

from edgepack.merge.methods import _sparsify, _task_vectors

PLUGIN = _task_vectors.method(
    "della_linear",
    "differences to the base, drawn by magnitude, added",
    _sparsify.EPSILON,
    sparsify=_sparsify.by_rank,
    rescale=True,
    random=True,
    masks=True,
    check=_sparsify.check_epsilon,
)
