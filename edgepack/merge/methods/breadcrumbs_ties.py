"""Breadcrumbs (arXiv 2312.06795), with the sign election of TIES (arXiv 2306.01708)."""

from edgepack.merge.methods import _sparsify, _task_vectors

PLUGIN = _task_vectors.method(
    "breadcrumbs_ties",
    "differences to the base, neither the largest nor the smallest, of the elected sign, added",
    _sparsify.GAMMA,
    sparsify=_sparsify.without_outliers,
    elect_signs=True,
)
