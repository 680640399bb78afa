"""TIES: "TIES-Merging: Resolving Interference When Merging Models" (arXiv 2306.01708), algorithm 1.

Each task vector keeps its largest elements, every element elects a sign, and those that have it are
averaged. `_task_vectors` says where mergekit, which this follows, differs from the paper.
"""

from edgepack.merge.methods import _sparsify, _task_vectors

PLUGIN = _task_vectors.method(
    "ties",
    "largest differences to the base, of the elected sign, averaged",
    sparsify=_sparsify.magnitude,
    elect_signs=True,
    normalize=True,
)
