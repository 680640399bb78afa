"""The Hadamard domain: H cancels, outliers are spread, and the block is the paper's choice."""

import pytest
import torch

from edgepack.finetune.int4.hadamard import block_matrix, block_sizes, choose_block, rotate
from edgepack.finetune.int4.lsq import codes, initial_step


def with_outliers(n: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Activations two of whose columns are fifty times as large."""
    x = torch.randn(n, columns, generator=torch.Generator().manual_seed(seed))
    x[:, [3, columns // 2]] *= 50
    return x


def rounded(x: torch.Tensor) -> torch.Tensor:
    step = initial_step(x, 4)
    return step * codes(x, step, 4)


@pytest.mark.parametrize("block", [1, 2, 64, 128, 1024])
def test_H_is_block_diagonal_orthogonal_and_cancels_in_a_product(block):
    x, W = with_outliers(10, 1024), with_outliers(7, 1024, seed=1)
    H = torch.block_diag(*[block_matrix(block)] * (1024 // block))
    assert torch.equal(H, H.T)
    torch.testing.assert_close(rotate(x, block), x @ H, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rotate(x, block) @ rotate(W, block).T, x @ W.T, rtol=1e-4, atol=0.1)
    torch.testing.assert_close(rotate(rotate(x, block), block), x, rtol=1e-4, atol=1e-4)


def test_a_block_divides_the_width():
    assert block_sizes(12) == [1, 2, 4]
    assert block_sizes(7) == [1]
    assert block_sizes(4096)[-1] == 1024


def test_the_block_has_the_least_product_of_errors():
    """Brute force, with the errors taken back into the domain of x and W."""
    x, W = with_outliers(32, 96), torch.randn(20, 96, generator=torch.Generator().manual_seed(2))
    scores = {}
    for block in (1, 2, 4, 8, 16, 32):
        H = torch.block_diag(*[block_matrix(block)] * (96 // block)).double()
        errors = [(rounded(A.double() @ H) @ H.T - A.double()).norm() for A in (x, W)]
        scores[block] = float(errors[0] * errors[1])
    chosen = choose_block(x, W, 4)
    assert chosen == min(scores, key=scores.get)
    assert chosen > 1
    assert scores[chosen] < scores[1] / 2


def test_of_equal_errors_the_smaller_block_counts():
    x = torch.zeros(4, 32)
    assert choose_block(x, x, 4) == 1
