"""Exact integer products, and rounding by rows."""

import pytest
import torch

from edgepack.finetune import int8


@pytest.mark.parametrize("shape", [(1, 8, 8), (17, 5, 9), (32, 64, 16), (33, 63, 1)])
def test_padding_for_cuda_changes_shapes_and_no_sum(shape):
    n, m, out = shape
    random = torch.Generator().manual_seed(0)
    a = torch.randint(-127, 128, (n, m), dtype=torch.int8, generator=random)
    b = torch.randint(-127, 128, (m, out), dtype=torch.int8, generator=random)
    A, B = int8.pad_for_cuda(a, b)
    assert A.shape[0] > 16
    assert A.shape[1] == B.shape[0]
    assert A.shape[1] % 8 == B.shape[1] % 8 == 0
    assert torch.equal((A.long() @ B.long())[:n, :out], a.long() @ b.long())


def test_matrices_larger_than_a_part_are_rounded_whole(monkeypatch):
    x = torch.randn(30, 96, generator=torch.Generator().manual_seed(0))
    codes, scale = int8.row_codes(x)
    monkeypatch.setattr(int8, "PART", 7 * 96)
    for a, b in zip(int8.row_codes(x), (codes, scale), strict=True):
        assert torch.equal(a, b)
    assert (codes.abs().amax(1) == 127).all()
    assert (codes * scale - x).abs().max() <= scale.max() / 2 * 1.001
