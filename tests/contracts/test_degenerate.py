"""Numbers at their ends: Hessians of few directions, values that are not finite, weights that
float16 scales are too narrow for, tiny models."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgepack.allocate.costs import Search, _Trial
from edgepack.calibration import sweep
from edgepack.calibration.moments import identity_hessian
from edgepack.calibration.sampling import sample
from edgepack.checkpoint import open_checkpoint
from edgepack.core import plugins
from edgepack.core.linalg import inverse_factor_up_to_rounding, solve_up_to_rounding
from edgepack.core.progress import finish
from edgepack.core.weights import Hessian, quadratic_cost
from edgepack.decompose import _kernels
from edgepack.decompose.caldera import Decomposition, caldera
from edgepack.decompose.ldlq import metric
from edgepack.decompose.low_rank import downdate, exact_low_rank, low_rank
from edgepack.errors import CalibrationError, DecompositionError, EdgepackError
from edgepack.formats import _scale_kernels
from edgepack.model.decoder import Decoder, Head
from edgepack.model.stream import Activations, Tokens
from tests.support.tiny import make_model

NAN, INF = float("nan"), float("inf")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def second_moment(x: Tensor) -> Tensor:
    return (x.T @ x / len(x)).float()


def few_states(n: int, states: int, seed: int = 0) -> Tensor:
    """H of a text in which only so many different inputs occur."""
    rows = torch.randint(states, (300,), generator=torch.Generator().manual_seed(seed))
    return second_moment(normal(states, n, seed=seed)[rows])


def sides(n: int) -> dict[str, Tensor]:
    """Matrices of second moments that are singular, each in its own way."""
    two = torch.where(torch.arange(n) % 3 == 0, 1.37, -0.731)
    dead = normal(300, n)
    dead[:, ::2] = 0
    loud = normal(300, n) * torch.logspace(0, -9, n)
    return {
        "zero": torch.zeros(n, n),
        "one token": few_states(n, 1),
        "two values": torch.outer(two, two),
        "all alike": torch.full((n, n), 0.3),
        "three states": few_states(n, 3),
        "decaying": second_moment(normal(40, n) * torch.logspace(0, -8, 40)[:, None]),
        "dead channels": second_moment(dead),
        "one column": torch.diag(torch.eye(n)[5]),
        "all sizes": second_moment(loud),
        "tiny": second_moment(normal(300, n)) * 1e-36,
        "huge": second_moment(normal(300, n)) * 1e34,
    }


WEIGHTS = {
    "normal": lambda m, n: normal(m, n, seed=3) * 0.1,
    "zero": torch.zeros,
    "same rows": lambda m, n: normal(1, n, seed=3).expand(m, n).clone(),
    "one direction": lambda m, n: normal(m, 1, seed=3) @ normal(1, n, seed=4),
}


def decompose(W: Tensor, H: Hessian, form: str = "q4_0", rank: int = 0, **more) -> Decomposition:
    options = {"factors": "f16", "damping": (0.01, 1e-30), "iterations": 2} | more
    return caldera(W, H, plugins.find("formats", form), rank=rank, **options)


# ------------------------------------------------------------------------ zero up to rounding


def out_sides(m: int) -> dict[str, Tensor | None]:
    found: dict[str, Tensor | None] = {k: sides(m)[k] for k in ("one token", "zero")}
    return found | {"none": None, "rows": torch.zeros(m), "one row": torch.eye(m)[3]}


@pytest.mark.slow
@pytest.mark.parametrize("inputs", sides(8))
@pytest.mark.parametrize("rank", [0, 32])
def test_every_singular_hessian_is_decomposed(inputs, rank):
    m, n = 40, 64
    H = sides(n)[inputs]
    for outputs, weight in itertools.product(out_sides(m).values(), WEIGHTS.values()):
        W = weight(m, n)
        found = decompose(W, Hessian(H, H, H.diagonal(), outputs, outputs), "q2_0", rank)
        assert all(torch.isfinite(t.float()).all() for t in found.weight.tensors().values())
        assert 0 <= found.error <= found.error_plain + 1e-9
        assert (found.clipped, found.lost) == (0, 0)
        if rank and inputs in ("one token", "two values", "all alike", "three states"):
            # as many directions as R has rows: nothing is left of the error
            assert found.error < 1e-4 or found.error_plain < 1e-4


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    states=st.integers(1, 40),
    rank=st.integers(1, 70),
    size=st.sampled_from([1e-12, 1.0, 1e12]),
    seed=st.integers(0, 1000),
)
def test_any_number_of_states_and_any_rank(states, rank, size, seed):
    m, n = 24, 64  # ranks above both sides are among them
    H = few_states(n, states, seed) * size
    out = few_states(m, 1 + seed % 5, seed)
    W = normal(m, n, seed=seed)
    found = decompose(W, Hessian(H, H, H.diagonal(), out, out), rank=rank)
    assert 0 <= found.error <= found.error_plain + 1e-9


@pytest.mark.parametrize("states", [1, 3, 20])
def test_what_r_explains_leaves_nothing(states):
    H = few_states(96, states)
    _, R = low_rank(normal(64, 96, seed=2), H, 32, "f16")
    assert torch.equal(downdate(H.double(), R.dequantize()), torch.zeros(96, 96).double())


def test_what_r_does_not_explain_is_left():
    """Forty states and eight rows: 32 directions, as the closed form without noise has them."""
    H = few_states(96, 40)
    R = exact_low_rank(normal(64, 96, seed=2), H, 8)[1]
    down = downdate(H.double(), R)
    expected = (
        H.double() - H.double() @ R.T @ torch.linalg.inv(R @ H.double() @ R.T) @ R @ H.double()
    )
    assert (down - expected).norm() < 1e-6 * expected.norm()
    assert int((torch.linalg.eigvalsh(down) > 1e-5 * down.trace()).sum()) == 32


def test_rows_of_r_that_repeat_one_another_do_no_harm():
    H = second_moment(normal(300, 32))
    R = normal(4, 32, seed=1)
    twice = torch.cat([R, R, 3 * R])
    torch.testing.assert_close(
        downdate(H.double(), twice), downdate(H.double(), R), rtol=0, atol=1e-5
    )
    gram = (twice @ H @ twice.T).double()
    wanted = normal(12, 5, seed=2).double()
    found = gram @ solve_up_to_rounding(gram, gram @ wanted)
    torch.testing.assert_close(found, gram @ wanted, rtol=0, atol=1e-4 * float(gram.abs().max()))


def test_a_negative_pivot_from_rounding_is_mended_and_a_negative_matrix_is_not():
    noise = 1e-7 * normal(32, 32)
    H = torch.eye(32).double()
    H[20:, 20:] = 0
    U = inverse_factor_up_to_rounding(H + noise + noise.T)
    assert torch.isfinite(U).all()
    assert torch.allclose(U[:20, :20], torch.eye(20).double(), atol=1e-4)
    with pytest.raises(DecompositionError, match="positive definite"):
        inverse_factor_up_to_rounding(-torch.eye(4).double())


def test_costs_are_never_negative():
    H = few_states(64, 1)
    x = torch.linalg.eigh(H.double()).eigenvectors[:, :-1].T  # what H does not see
    assert min(quadratic_cost(row[None], H) for row in x) == 0.0
    assert quadratic_cost(x, H, torch.eye(63)) < 1e-6


# ------------------------------------------------------------------------ not finite


@pytest.mark.slow
@pytest.mark.parametrize("form", plugins.names("formats"))
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_no_format_takes_what_is_not_finite(form, bad):
    W = normal(4, 256)
    W[2, 7] = bad
    with pytest.raises(DecompositionError, match="the weight has 1 of 1024 values that are not"):
        plugins.find("formats", form).quantize(W)
    with pytest.raises(DecompositionError, match="the weight has 1 of 1024"):
        decompose(W, identity_hessian(256), form)
    importance = torch.ones(256)
    importance[3] = bad
    with pytest.raises(DecompositionError, match="importance of its columns has 1 of 256"):
        plugins.find("formats", form).quantize(normal(4, 256), importance)


@pytest.mark.parametrize("part", ["train", "held_out", "out_train", "out_held_out"])
def test_statistics_that_are_not_finite_are_named(part):
    given = {name: torch.eye(64) for name in ("train", "held_out")}
    given |= {name: torch.eye(8) for name in ("out_train", "out_held_out")}
    given[part][1, 2] = NAN
    H = Hessian(**given, imatrix=torch.ones(64))
    with pytest.raises(DecompositionError, match="Hessian"):
        decompose(normal(8, 64), H)
    with pytest.raises(DecompositionError, match="Hessian"):
        _Trial(normal(8, 64), H, Search({}, (0,), "f16", 0.01))


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 3e38])
def test_compiled_loops_stay_inside_their_tables(bad):
    """The second wall: even if such a value came through, no look-up leaves its table."""
    fmt = plugins.find("formats", "iq4_nl")
    bins, first = fmt.code_levels.bins
    table = fmt.code_levels.values[bins.long()].numpy()
    x, w = np.full((2, 32), bad, np.float32), np.ones((2, 32), np.float32)
    probes = fmt.probes.numpy()
    found = [np.zeros((2, 3), np.float32) for _ in range(2)]
    _scale_kernels.one_scale(x, w, probes, table, np.float32(first), True, *found)
    probes = plugins.find("formats", "q4_1").probes.numpy()
    found = [np.zeros((2, 3), np.float32) for _ in range(3)]
    _scale_kernels.scale_min(x, w, probes, np.float32(15), True, False, *found)
    codes = np.full((2, 32), 255, np.uint8)
    ones = np.ones((2, 1, 1), np.float32)
    _kernels.sweep(
        x, np.eye(32, dtype=np.float32), ones, 0 * ones, np.zeros(32, np.int64),
        fmt.levels.numpy(), bins.numpy(), np.float32(first), np.empty((0, 0), np.float32),
        np.zeros(2, np.int64), codes, np.zeros((2, 32), np.float32),
    )  # fmt: skip
    assert codes.max() < 16


def test_probabilities_that_are_not_finite_are_no_tokens():
    for bad in (NAN, INF, 0.0):
        p = torch.full((2, 5), 0.2)
        p[1] = bad
        with pytest.raises(CalibrationError, match="predictions are not finite"):
            sample(p, torch.Generator())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.embed_tokens.weight", "the embeddings: model.embed_tokens.weight has 1 values"),
        (
            "model.layers.1.mlp.up_proj.weight",
            "layers.1.mlp.up_proj.weight has 1 values",
        ),
        ("model.norm.weight", "the head: model.norm.weight has 1 values"),
        ("lm_head.weight", "the head: lm_head.weight has 1 values"),
    ],
)
def test_calibration_names_the_weight_that_is_not_finite(tmp_path, name, said):
    make_model(tmp_path / "model", tied=False)
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    W = checkpoint.tensor(name)
    W.view(-1)[70 if W.dim() > 1 else 3] = NAN
    ids = torch.arange(16).view(2, 8)
    decoder = Decoder(checkpoint, {name: lambda: W})
    with pytest.raises(CalibrationError, match=said):
        finish(sweep.guided_hessians(decoder, Tokens(ids[:1], ids[1:]), tmp_path, seed=0))


def test_a_short_file_of_activations_is_an_error(tmp_path):
    file = Activations(tmp_path / "x", (4, 3, 2))
    file.write([torch.ones(4, 3, 2)])
    file.path.write_bytes(file.path.read_bytes()[:-1])
    with pytest.raises(CalibrationError, match="fewer than the 4 sequences"):
        file.read(slice(2, 4))


# ------------------------------------------------------------------------ float16's ends


def has_float16_scales(name: str) -> bool:
    grid = plugins.find("formats", name).quantize(normal(1, 256)).grid
    return any(values.dtype == torch.float16 for values in grid.values())


FP16 = [name for name in plugins.names("formats") if has_float16_scales(name)]
"""Those of mxfp4 are powers of two, f16 has none and refuses."""


@pytest.mark.slow
@pytest.mark.parametrize("form", FP16)
def test_what_float16_cannot_hold_is_counted_and_nearest(form):
    W = normal(4, 256)
    plain = decompose(W, identity_hessian(256), form)
    assert (plain.clipped, plain.lost) == (0, 0)
    high = decompose(W * 1e30, identity_hessian(256), form)
    assert high.clipped == W.numel()
    dense = high.weight.dense()
    assert torch.isfinite(dense).all()
    agrees = (dense * W >= 0).float().mean()
    assert agrees > 0.8  # signs of vector codebooks are even in number
    low = decompose(W * 1e-12, identity_hessian(256), form)
    assert (low.clipped, low.lost) == (0, W.numel())
    assert not low.weight.dense().any()


def test_one_block_alone_is_counted():
    W = normal(4, 256)
    W[1, 32:64] *= 1e9
    W[2, 64:96] *= 1e-12
    found = decompose(W, identity_hessian(256))
    assert (20 < found.clipped <= 32, found.lost) == (True, 32)
    other = torch.ones(4, 256, dtype=torch.bool)
    other[1, 32:64] = other[2, 64:96] = False
    assert (found.weight.dense() - W)[other].abs().max() < 0.5


# ------------------------------------------------------------------------ models of odd sizes


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"layers": 1},
        {"heads": 1, "kv_heads": 1},
        {"heads": 4, "kv_heads": 4},
        {"hidden": 32, "heads": 1, "kv_heads": 1, "intermediate": 32, "layers": 1},
        {"rows": 547},  # no multiple of anything, and rows that no token has
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "opt", "phi"])
def test_models_of_odd_sizes_are_calibrated(tmp_path, family, model):
    make_model(tmp_path / "model", family, tied=family == "opt", **model)
    decoder = Decoder(open_checkpoint(str(tmp_path / "model")))
    ids = torch.arange(96).view(4, 24)
    finish(
        sweep.guided_hessians(decoder, Tokens(ids[:3], ids[3:]), tmp_path, seed=0, output_side=True)
    )
    for name in ("0", "head", "token_embd"):
        for H in sweep_hessians(tmp_path / name):
            damped = metric(H, 32, 0.01)
            assert torch.isfinite(damped.U).all()


def sweep_hessians(path) -> list[Tensor]:
    from edgepack.calibration.moments import load_hessian

    names = [file.name for file in path.iterdir()] if path.is_dir() else [path.name]
    return [load_hessian(path, name).train for name in names]


def test_a_head_without_a_norm_is_an_error(tmp_path):
    make_model(tmp_path)
    with pytest.raises(EdgepackError, match="no final norm"):
        Head.from_vectors({}, torch.ones(2, 2), open_checkpoint(str(tmp_path)).dimensions)
