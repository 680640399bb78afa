"""Hadamard matrices for the widths that models have."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgepack.errors import RecipeError


def hadamard(n: int) -> Tensor:
    """An orthogonal matrix float64 ``[n, n]`` whose entries are all ±1/√n.

    Sylvester's doubling of the smallest of Paley's matrices whose order divides n (order q + 1 for
    a prime q ≡ 3 mod 4, 2(q + 1) for q ≡ 1 mod 4; J. Math. Phys. 12, 1933). Raises `RecipeError`
    where there is none.
    """
    H = _paley(paley_order(n))
    while len(H) < n:
        H = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=H.dtype), H)
    return H / math.sqrt(n)


def random_hadamard(n: int, seed: int) -> Tensor:
    """`hadamard` with random signs of its rows."""
    signs = torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return signs.double()[:, None] * hadamard(n)


def paley_order(n: int) -> int:
    """The order of Paley's matrix in a Hadamard matrix of order n; raises as `hadamard`."""
    order = next((m for m in _orders(n) if _prime_of(m) is not None), None)
    if order is None:
        raise RecipeError(
            f"no Hadamard matrix of {n} columns is known here",
            hint="use another rotation, or none",
        )
    return order


def _orders(n: int) -> list[int]:
    """n divided by powers of two, smallest first."""
    found = [n]
    while found[-1] % 2 == 0:
        found.append(found[-1] // 2)
    return found[::-1]


def _prime_of(order: int) -> int | None:
    """The prime that a matrix of that order is made from; 0 for orders 1 and 2."""
    if order in (1, 2):
        return 0
    for q, remainder in ((order - 1, 3), (order // 2 - 1, 1)):
        if order % 4 == 0 and q % 4 == remainder and _is_prime(q):
            return q
    return None


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % i for i in range(2, math.isqrt(q) + 1))


def _paley(order: int) -> Tensor:
    q = _prime_of(order)
    if not q:
        return torch.ones(1, 1, dtype=torch.float64)
    residues = {i * i % q for i in range(1, q)}
    symbol = torch.tensor([0.0] + [1.0 if i in residues else -1.0 for i in range(1, q)]).double()
    index = torch.arange(q)
    Q = symbol[(index[:, None] - index) % q]
    S = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    S[1:, 1:], S[0, 1:] = Q, 1.0
    if q % 4 == 3:
        S[1:, 0] = -1.0
        return S + torch.eye(q + 1)
    S[1:, 0] = 1.0
    one = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double()
    other = torch.tensor([[1.0, -1.0], [-1.0, -1.0]]).double()
    return torch.kron(S, one) + torch.kron(torch.eye(q + 1).double(), other)
