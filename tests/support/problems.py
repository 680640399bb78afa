"""Hessians and weights such as a transformer has, and what an error costs."""

import torch
from torch import Tensor


def correlated(columns: int, samples: int = 4096, seed: int = 0) -> Tensor:
    """H of inputs as a transformer has them: a steep spectrum and a few loud channels."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(columns, columns, generator=generator)).Q
    scales = torch.arange(1, columns + 1).float() ** -0.7
    X = torch.randn(samples, columns, generator=generator) * scales @ basis.T
    X[:, ::37] *= 4
    return X.T @ X / samples


def weights(rows: int, columns: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def cost(E: Tensor, H: Tensor) -> float:
    """tr(E H Eᵀ) in float64."""
    E, H = E.double(), H.double()
    return float(torch.einsum("ij,ij->", E @ H, E))
