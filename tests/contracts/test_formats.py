"""What every format must keep; a new file in edgepack/formats is tested without a line here."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgepack.core import plugins
from edgepack.core.weights import QuantizedTensor
from edgepack.formats._affine import Affine
from edgepack.formats._ggml import GGML_QUANT_SIZES, GGMLQuantizationType, register
from edgepack.formats._scalar import BlockScalar, Scalar
from edgepack.formats.base import Format, GgmlFormat
from tests.support import ggml_oracle, proposed

FORMATS = {name: plugins.find("formats", name) for name in plugins.names("formats")}
AFFINES = {name: f for name, f in FORMATS.items() if isinstance(f, Affine)}
SCALARS = {name: f for name, f in FORMATS.items() if isinstance(f, Scalar)}
BLOCKS = {name: f for name, f in SCALARS.items() if isinstance(f, BlockScalar)}
STOCK = {name: f for name, f in FORMATS.items() if isinstance(f, GgmlFormat)}
IN_GGML = {name: f for name, f in STOCK.items() if f.in_ggml}
COLUMNS = 512

every_format = pytest.mark.parametrize("name", FORMATS)
every_stock = pytest.mark.parametrize("name", STOCK)
every_in_ggml = pytest.mark.parametrize("name", IN_GGML)
every_affine = pytest.mark.parametrize("name", AFFINES)
every_scalar = pytest.mark.parametrize("name", SCALARS)
every_stock_affine = pytest.mark.parametrize("name", sorted(AFFINES.keys() & IN_GGML.keys()))
every_block = pytest.mark.parametrize("name", BLOCKS)
every_stock_block = pytest.mark.parametrize("name", [n for n in BLOCKS if n in IN_GGML])
needs_ggml = pytest.mark.skipif(
    not ggml_oracle.available(), reason="llama-cpp-python is not installed: no libggml to compare"
)


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors here are small: more threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normal(rows: int = 16, seed: int = 0) -> Tensor:
    return 0.02 * torch.randn(rows, COLUMNS, generator=torch.Generator().manual_seed(seed))


def heavy(rows: int = 16) -> Tensor:
    """About Student's t with 4 degrees of freedom."""
    chi = torch.stack([normal(rows, seed) for seed in range(1, 5)]).square().mean(0).sqrt()
    return 0.02 * normal(rows, 9) / chi


DATA = {
    "normal": normal(),
    "heavy": heavy(),
    "zero": torch.zeros(2, COLUMNS),
    "constant": torch.full((2, COLUMNS), 0.3),
    "tiny": 1e-5 * normal(),
    "tiniest": 1e-8 * normal(),
    "negative": -normal().abs() - 0.01,
    "positive": normal().abs() + 0.01,
}
IMPORTANCE = 0.01 + 10 * torch.rand(COLUMNS, generator=torch.Generator().manual_seed(7)) ** 3

every_tensor = pytest.mark.parametrize("kind", DATA)
both_importances = pytest.mark.parametrize(
    "importance", [None, IMPORTANCE], ids=["plain", "imatrix"]
)


def stock(fmt: Format, x: Tensor, importance: Tensor | None = None) -> QuantizedTensor:
    data = ggml_oracle.quantize(fmt.ggml_type, x, fmt.nbytes((1, x.shape[1])), importance)
    return fmt.parse(data)


def arbitrary(fmt: Format, rows: int = 6, seed: int = 0) -> QuantizedTensor:
    """Every code and integer scale may occur, with finite fp16 numbers of either sign."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(fmt, GgmlFormat):
        shape = (rows, fmt.nbytes((1, COLUMNS)))
        q = fmt.parse(torch.randint(0, 256, shape, generator=generator).to(torch.uint8))
    else:
        q = anything(fmt, rows, generator)

    def finite(values: Tensor) -> Tensor:
        if not values.is_floating_point():
            return values
        size = 10.0 ** torch.randint(-7, 1, values.shape, generator=generator)
        return stored(torch.randn(values.shape, generator=generator) * size, values)

    grid = {field: finite(values) for field, values in q.grid.items()}
    codes = q.codes.clamp(max=len(fmt.levels) - 1) if isinstance(fmt, Affine) else finite(q.codes)
    return QuantizedTensor(fmt.name, codes, grid)


def anything(fmt: Format, rows: int, generator: torch.Generator) -> QuantizedTensor:
    """Any code and zero point."""
    codes = torch.randint(0, len(fmt.levels), (rows, COLUMNS), generator=generator)
    grid = fmt.fit(torch.zeros(rows, COLUMNS), torch.ones(COLUMNS))
    fields = {
        k: torch.randint(0, len(fmt.levels), v.shape, generator=generator) for k, v in grid.items()
    }
    grid = {k: v.to(grid[k].dtype) for k, v in fields.items()}
    return QuantizedTensor(fmt.name, codes.to(torch.uint8), grid)


def stored(values: Tensor, like: Tensor) -> Tensor:
    """As a grid keeps them: in 16 bits, or (mxfp4) as powers of two."""
    if like.dtype in (torch.float16, torch.bfloat16):
        return values.to(like.dtype)
    return values.abs().log2().round().exp2()


def reference(fmt: Format, data: Tensor) -> Tensor:
    """The values of packed bytes: gguf's own reader, or libggml's where it lacks the type; of types
    that are only proposed, as the proposal computes them."""
    if fmt.name in proposed.TYPES:
        return proposed.dequantize(fmt.name, data)
    kind = GGMLQuantizationType(fmt.ggml_type)
    try:
        return torch.from_numpy(gguf.quants.dequantize(data.numpy(), kind).astype(np.float32))
    except NotImplementedError:
        if not ggml_oracle.available():
            pytest.skip("gguf does not know the type and llama-cpp-python is not installed")
        return ggml_oracle.dequantize(fmt.name, data, COLUMNS)


def loss(x: Tensor, y: Tensor, importance: Tensor | None) -> float:
    w = torch.ones(x.shape[1]) if importance is None else importance
    return float(((x - y).double().square() * w).sum())


def same(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    tensors = [(a.codes, b.codes), *((a.grid[k], b.grid[k]) for k in a.grid)]
    return a.grid.keys() == b.grid.keys() and all(torch.equal(s, t) for s, t in tensors)


@every_stock
def test_sizes_are_ggmls(name: str):
    fmt = FORMATS[name]
    kind = GGMLQuantizationType(fmt.ggml_type)
    assert (fmt.name, kind.name.lower()) == (name, name)
    assert (fmt.block_size, fmt.type_size) == GGML_QUANT_SIZES[kind]
    assert fmt.bits_per_weight == 8 * fmt.type_size / fmt.block_size
    assert fmt.nbytes((3, COLUMNS)) == fmt.pack(arbitrary(fmt, rows=3)).numel()


@pytest.mark.slow
@every_in_ggml
@every_tensor
@both_importances
@needs_ggml
def test_stock_bytes_survive(name: str, kind: str, importance: Tensor | None):
    fmt = FORMATS[name]
    row_bytes = fmt.nbytes((1, COLUMNS))
    data = ggml_oracle.quantize(fmt.ggml_type, DATA[kind], row_bytes, importance)
    assert torch.equal(fmt.pack(fmt.parse(data)), data)


@every_stock
def test_pack_and_parse_are_inverse(name: str):
    q = arbitrary(FORMATS[name])
    assert same(FORMATS[name].parse(FORMATS[name].pack(q)), q)


@pytest.mark.slow
@every_stock
@pytest.mark.parametrize("seed", range(3))
def test_decode_is_the_runtimes(name: str, seed: int):
    fmt = FORMATS[name]
    q = arbitrary(fmt, seed=seed)
    ours, theirs = q.dequantize(), reference(fmt, fmt.pack(q))
    assert ours.dtype == torch.float32
    assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))


@every_stock_affine
@needs_ggml
def test_decode_agrees_with_libggml(name: str):
    fmt = FORMATS[name]
    q = arbitrary(fmt)
    library = name.replace("_k", "_K")
    theirs = ggml_oracle.dequantize(library, fmt.pack(q), COLUMNS)
    # Not bit for bit: where it is compiled with FMA, scale·code − min is rounded once.
    torch.testing.assert_close(q.dequantize(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@every_in_ggml
@pytest.mark.parametrize("kind", ["normal", "heavy", "negative", "positive"])
@both_importances
@needs_ggml
def test_fit_beats_stock(name: str, kind: str, importance: Tensor | None):
    fmt, x = FORMATS[name], DATA[kind]
    ours = loss(x, fmt.quantize(x, importance).dequantize(), importance)
    theirs = loss(x, stock(fmt, x, importance).dequantize(), importance)
    assert ours <= theirs


@pytest.mark.slow
@every_stock_block
@pytest.mark.parametrize("kind", ["normal", "heavy", "tiny", "negative", "constant", "zero"])
@both_importances
@needs_ggml
def test_fit_recovers_stock_grids(name: str, kind: str, importance: Tensor | None):
    fmt = FORMATS[name]
    x = stock(fmt, DATA[kind], importance).dequantize()
    assert torch.equal(fmt.quantize(x, importance).dequantize(), x)


@pytest.mark.slow
@every_block
@pytest.mark.parametrize("unused", [0.1, 0.3, 0.5])
def test_fit_recovers_grids_used_in_part(name: str, unused: float):
    """Codes that never reach one end or both of their range, d of a weight's size."""
    fmt = BLOCKS[name]
    q, codes = arbitrary(fmt, rows=32), len(fmt.levels)
    low, high = int(unused * codes), max(int((1 - unused / 3) * codes), 2)
    shape = q.grid["d"].shape
    grid = {
        "d": normal(32)[:, : shape[1]].abs() + 1e-3,
        "m": -3 * normal(32, 1)[:, : shape[1]].abs(),
    }
    grid = {field: stored(grid[field], q.grid[field]) for field in q.grid}
    partial = QuantizedTensor(name, q.codes.clamp(low, high - 1), grid)
    x = partial.dequantize()
    torch.testing.assert_close(fmt.quantize(x).dequantize(), x, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted((SCALARS.keys() & STOCK.keys()) - BLOCKS.keys()))
@needs_ggml
def test_fit_nearly_recovers_stock_k_grids(name: str):
    x = stock(FORMATS[name], DATA["normal"]).dequantize()
    again = FORMATS[name].quantize(x).dequantize()
    assert loss(x, again, None) < 2e-3 * float(x.square().sum())


@pytest.mark.slow
@every_format
def test_zero_rows_stay_zero(name: str):
    x = normal(4)
    x[1] = 0
    x[2, :256] = 0
    q = FORMATS[name].quantize(x)
    assert torch.equal(q.dequantize()[x == 0], torch.zeros(int((x == 0).sum())))
    assert all(values.isfinite().all() for values in q.grid.values())


@pytest.mark.slow
@every_format
def test_fit_stays_finite(name: str):
    """With columns, blocks and rows that do not count, and values too small or large for fp16."""
    importance = IMPORTANCE.repeat(6, 1)
    importance[:, ::3] = 0
    importance[1, :256] = 0
    importance[2] = 0
    x = torch.cat([normal(3), 1e-38 * normal(1), 1e-9 * normal(1), 1e3 * normal(1)])
    q = FORMATS[name].quantize(x, importance)
    assert q.dequantize().isfinite().all()
    most = 0.2 if FORMATS[name].bits_per_weight > 2 else 0.5
    assert loss(x[:1], q.dequantize()[:1], importance[0]) < most * loss(
        x[:1], 0 * x[:1], importance[0]
    )


@pytest.mark.slow
@every_affine
def test_importance_counts_per_row(name: str):
    fmt, x = AFFINES[name], normal(4)
    importance = torch.stack([IMPORTANCE, IMPORTANCE.flip(0), IMPORTANCE, torch.ones(COLUMNS)])
    whole = fmt.fit(x, importance)
    for row in range(4):
        alone = fmt.fit(x[row : row + 1], importance[row])
        assert all(torch.equal(whole[field][row : row + 1], alone[field]) for field in whole)


@pytest.mark.slow
@every_format
def test_columns_one_by_one(name: str):
    fmt, x = FORMATS[name], normal(5)[:, : max(FORMATS[name].block_size, 64)]
    grid = fmt.fit(x, torch.ones(x.shape[1]))
    codes = fmt.encode(x, grid)
    values = fmt.decode(codes, grid)
    for j in range(0, x.shape[1], fmt.group):
        here = slice(j, j + fmt.group)
        assert torch.equal(fmt.encode(x[:, here], grid, here), codes[:, here])
        assert torch.equal(fmt.decode(codes[:, here], grid, here), values[:, here])
    middle = slice(24, 56)
    assert torch.equal(fmt.decode(codes[:, middle], grid, middle), values[:, middle])


@every_affine
def test_values_are_scale_level_offset(name: str):
    fmt = AFFINES[name]
    q = arbitrary(fmt)
    scale, offset = fmt.affine(q.grid)
    inlined = scale * fmt.levels[q.codes.long()] + offset
    assert torch.equal(inlined.view(torch.int32), q.dequantize().view(torch.int32))
    assert fmt.levels.dtype == torch.float32
    assert bool((fmt.levels.diff() > 0).all())


@pytest.mark.slow
@every_scalar
def test_encode_takes_the_nearest_code(name: str):
    fmt = SCALARS[name]
    q = arbitrary(fmt, seed=3)
    x = q.dequantize() * 1.1 + 0.3 * normal(len(q.codes), 5)
    scale, offset = fmt.affine(q.grid)
    points = scale.unsqueeze(-1) * fmt.levels + offset.unsqueeze(-1)
    best = (points - x.unsqueeze(-1)).abs().amin(-1)
    ours = (q.plugin.decode(fmt.encode(x, q.grid), q.grid) - x).abs()
    torch.testing.assert_close(ours, best, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@every_scalar
def test_zero_scale_takes_the_level_nearest_zero(name: str):
    fmt, x = SCALARS[name], normal(3)
    grid = {field: torch.zeros_like(v) for field, v in fmt.fit(x, torch.ones(COLUMNS)).items()}
    codes = fmt.encode(x, grid)
    assert torch.equal(fmt.levels[codes.long()].abs(), fmt.levels.abs().min().expand_as(x))


@pytest.mark.slow
@every_affine
def test_candidates_start_with_the_fit(name: str):
    fmt = AFFINES[name]
    x, importance = normal(7)[:, : fmt.block_size], IMPORTANCE[: fmt.block_size]
    grid, found = fmt.fit(x, importance), fmt.candidates(x, importance)
    K = next(iter(found.values())).shape[1]
    for field, values in found.items():
        assert values.shape == (7, K, *grid[field].shape[2:])
        assert torch.equal(values[:, :1], grid[field])
    assert K >= 4
    assert all(len(d.unique()) > 1 for d in found["d"])


@pytest.mark.slow
@every_affine
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**32 - 1))
def test_encoding_decoded_values_changes_nothing(name: str, seed: int):
    q = arbitrary(FORMATS[name], rows=2, seed=seed)
    x = q.dequantize()
    assert torch.equal(q.plugin.decode(q.plugin.encode(x, q.grid), q.grid), x)


def test_q2_0_through_gguf_files(tmp_path):
    register()
    register()
    fmt = FORMATS["q2_0"]
    q = fmt.quantize(normal(6))
    path = tmp_path / "q2_0.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    kind = GGMLQuantizationType.Q2_0
    writer.add_tensor("w", fmt.pack(q).numpy(), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tensor,) = gguf.GGUFReader(path).tensors
    assert (tensor.tensor_type, int(kind), kind.name) == (kind, 42, "Q2_0")
    assert tensor.shape.tolist() == [COLUMNS, 6]
    assert same(fmt.parse(torch.from_numpy(np.array(tensor.data))), q)
