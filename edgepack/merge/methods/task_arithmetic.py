"""Task arithmetic: "Editing Models with Task Arithmetic" (arXiv 2212.04089), section 2,
θ₀ + λ·Σ wᵢ(θᵢ − θ₀)."""

from edgepack.merge.methods import _task_vectors

PLUGIN = _task_vectors.method(
    "task_arithmetic",
    "weighted sum of the differences to the base",
)
