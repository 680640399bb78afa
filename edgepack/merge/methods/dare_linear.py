"""DARE: "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free
Lunch" (arXiv 2311.03099): a random share of each task vector, rescaled, then added.

The paper rescales by 1 / density; `_sparsify` says what mergekit and this do.
"""

from edgepack.merge.methods import _sparsify, _task_vectors

PLUGIN = _task_vectors.method(
    "dare_linear",
    "random differences to the base, rescaled and added",
    sparsify=_sparsify.random,
    rescale=True,
    random=True,
)
