"""Breadcrumbs: "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks"
(arXiv 2312.06795): task vectors without outliers and without small elements, added."""

from edgepack.merge.methods import _sparsify, _task_vectors

PLUGIN = _task_vectors.method(
    "breadcrumbs",
    "differences to the base, neither the largest nor the smallest, added",
    _sparsify.GAMMA,
    sparsify=_sparsify.without_outliers,
)
