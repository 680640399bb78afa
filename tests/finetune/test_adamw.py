"""AdamW equals PyTorch's; in 8 bits it follows it closely."""

from __future__ import annotations

import pytest
import torch

from edgepack.finetune.adamw import BLOCK, AdamW


def run(rule, steps=30, shape=(37, 20)):
    draw = torch.Generator().manual_seed(0)
    p = torch.randn(shape, generator=draw)
    state = rule.initial(p)
    for number in range(1, steps + 1):
        g = torch.randn(shape, generator=draw) * 10 ** (3 * torch.rand(shape, generator=draw) - 3)
        state = rule.step(p, g, state, number, 0.5)
    return p, state


def test_it_is_pytorchs():
    found, _ = run(AdamW(1e-2, 0.1))
    draw = torch.Generator().manual_seed(0)
    p = torch.randn((37, 20), generator=draw).requires_grad_()
    optimizer = torch.optim.AdamW([p], lr=0.5e-2, weight_decay=0.1)
    for _ in range(30):
        p.grad = torch.randn(p.shape, generator=draw) * 10 ** (
            3 * torch.rand(p.shape, generator=draw) - 3
        )
        optimizer.step()
    assert torch.allclose(found, p.detach(), atol=1e-6)


def test_in_8_bits_it_goes_nearly_the_same_way():
    exact, _ = run(AdamW(1e-2))
    start, _ = run(AdamW(1e-2), steps=0)
    rounded, state = run(AdamW(1e-2, states="int8"))
    way = exact - start
    assert float((rounded - exact).norm() / way.norm()) < 0.1
    bytes_a_value = sum(part.nbytes for part in state.values()) / exact.numel()
    assert bytes_a_value == pytest.approx(2 + 8 / BLOCK, rel=0.05)


def test_a_block_of_zeros_stays_zero():
    p = torch.ones(3, 5)
    rule = AdamW(1e-2, states="int8")
    state = rule.step(p, torch.zeros(3, 5), rule.initial(p), 1, 1.0)
    assert torch.equal(p, torch.ones(3, 5))
    assert not any(part.any() for part in state.values())
