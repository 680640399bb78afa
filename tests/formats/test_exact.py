"""Values that lie on a format's grid: the grid is found again, from floats of any type."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from edgepack.core.weights import QuantizedTensor
from edgepack.formats._exact import DTYPES, Near, recover
from edgepack.formats.base import Format, GgmlFormat
from tests.contracts.test_formats import (
    COLUMNS,
    FORMATS,
    IN_GGML,
    arbitrary,
    heavy,
    needs_ggml,
    normal,
    reference,
    stock,
    stored,
)

GRIDS = sorted(FORMATS.keys() - {"f16"})
MIRRORED = {"q2_0", "q6_k"}
"""Types in whose stock blocks −d with mirrored codes often gives the same values."""

LARGEST_BYTE = 126
"""NVFP4's largest scale; the one above means no number."""

every_grid = pytest.mark.parametrize("name", GRIDS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))


def written(fmt: Format, q: QuantizedTensor) -> Tensor:
    """What others read from the file; formats for ONNX by their own decoding."""
    return reference(fmt, fmt.pack(q)) if isinstance(fmt, GgmlFormat) else q.dequantize()


def on_grid(fmt: Format, rows: int = 12) -> QuantizedTensor:
    """Random codes and integer scales, float scales of a weight's size. Steps are not finer than
    the precision of bfloat16, or the codes could not be told apart."""
    q, generator = arbitrary(fmt, rows, seed=5), torch.Generator().manual_seed(6)

    def sized(field: str, v: Tensor) -> Tensor:
        if not v.is_floating_point():
            return {"d": v.clamp(max=LARGEST_BYTE), "scales": v | 8}.get(field, v)
        size = 0.002 if field == "dmin" else 0.02
        values = size * torch.randn(v.shape, generator=generator)
        return stored(values.abs() + 1e-3 if field == "d" else values, v)

    return QuantizedTensor(q.format, q.codes, {k: sized(k, v) for k, v in q.grid.items()})


@every_grid
@every_dtype
def test_a_rounded_weight_comes_back_bit_for_bit(name: str, dtype: torch.dtype):
    fmt = FORMATS[name]
    x = torch.cat([normal(8), heavy(4)])
    x[3] = 0
    x[5, :256] = 0
    W = fmt.quantize(x).dequantize().to(dtype)
    found = recover(W.float(), dtype, fmt)
    assert found is not None
    assert torch.equal(written(fmt, found).to(dtype), W)


@pytest.mark.parametrize("name", [name for name in GRIDS if name != "int8"])
@every_dtype
def test_any_codes_come_back(name: str, dtype: torch.dtype):
    fmt = FORMATS[name]
    W = on_grid(fmt).dequantize().to(dtype)
    found = recover(W.float(), dtype, fmt)
    assert found is not None
    assert torch.equal(written(fmt, found).to(dtype), W)


@needs_ggml
@pytest.mark.parametrize("name", sorted(IN_GGML.keys() - {"f16"}))
@every_dtype
def test_stock_files_come_back(name: str, dtype: torch.dtype):
    fmt = IN_GGML[name]
    q = stock(fmt, torch.cat([normal(8), heavy(8)]))
    W = q.dequantize().to(dtype)
    found = recover(W.float(), dtype, fmt)
    assert found is not None
    again = found.dequantize().to(dtype)
    assert torch.equal(again, W)
    assert torch.equal(torch.signbit(again), torch.signbit(W))  # zeros too
    if dtype == torch.float32 and name not in MIRRORED:
        assert torch.equal(fmt.pack(found), fmt.pack(q))


@every_grid
@every_dtype
def test_random_weights_lie_on_no_grid(name: str, dtype: torch.dtype):
    fmt = FORMATS[name]
    for seed in range(3):
        x = torch.cat([normal(32, seed), -normal(8, seed).abs() - 0.01, heavy(8)])
        assert recover(x.to(dtype).float(), dtype, fmt) is None


def test_a_sub_block_may_lack_the_lowest_codes():
    """Many offsets then go with the same scale, and one of them is a whole number of dmin."""
    fmt = FORMATS["q5_k"]
    packed = fmt.quantize(normal(16))
    codes = packed.codes.clone()
    codes[:, :32] = codes[:, :32].clamp(min=9)
    W = replace(packed, codes=codes).dequantize()
    assert recover(W, torch.float32, fmt) is not None


@every_grid
@every_dtype
def test_one_number_off_is_seen(name: str, dtype: torch.dtype):
    fmt = FORMATS[name]
    W = fmt.quantize(normal(64)).dequantize().to(dtype)
    odd = W.clone()
    odd[37, int(W[37].float().abs().argmax())] *= 1.03
    assert recover(W.float(), dtype, fmt) is not None
    assert recover(odd.float(), dtype, fmt) is None


@every_dtype
def test_bounds_are_those_of_rounding(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(1)
    size = 10.0 ** torch.randint(-6, 3, (4096,), generator=generator)
    x = (torch.randn(4096, generator=generator) * size).to(dtype)
    x[:4] = torch.tensor([0.0, -0.0, 1.0, -1.0])
    near = Near.of(x.float(), dtype)
    assert bool((near.lo <= near.x).all())
    assert bool((near.x <= near.hi).all())
    for bound, outwards in ((near.lo, -torch.inf), (near.hi, torch.inf)):
        inner = bound.float()  # a float32 beside the bound, on whichever side
        further = torch.nextafter(inner, torch.full_like(inner, outwards))
        for v in (inner, further):
            inside = (near.lo <= v.double()) & (v.double() <= near.hi)
            assert torch.equal(inside, v.to(dtype).float() == near.x)


def test_what_does_not_fit_is_on_no_grid():
    W = FORMATS["q4_0"].quantize(normal(4)).dequantize()
    assert recover(W[:, :40], torch.float32, FORMATS["q4_0"]) is None
    assert recover(W, torch.float32, FORMATS["f16"]) is None
    assert W.shape[1] == COLUMNS
