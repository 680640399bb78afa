"""What becomes of one weight when the stream is rotated and cut, and the basis it is cut in."""

import pytest
import torch
from torch import Tensor

from edgepack.slicing.basis import orient, principal_directions
from edgepack.slicing.weights import rotate_weight, slice_weight

D, KEPT, OUT = 12, 8, 10
READ, WRITES, START, NORM = "attn_q", "ffn_down", "token_embd", "attn_norm"


def matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(seed: int = 1) -> Tensor:
    return torch.linalg.qr(matrix(D, D, seed=seed).double()).Q


def rms_norm(x: Tensor, gain: Tensor, width: int) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) / width).sqrt() * gain


@pytest.mark.parametrize("change", [rotate_weight, slice_weight])
def test_a_whole_rotation_changes_nothing_that_is_computed(change):
    """norm, reader, writer back into the stream: on the far side of Q the same, turned by Q."""
    Q, gain, x = rotation(), torch.rand(D) + 0.5, matrix(5, D, seed=2)
    reader, writer = matrix(OUT, D, seed=3), matrix(D, OUT, seed=4)
    wanted = x + rms_norm(x, gain, D) @ reader.T @ writer.T
    far = change(x, START, Q, None)
    norm = change(gain, NORM, Q, None)
    inside = rms_norm(far, norm, D) @ change(reader, READ, Q, gain).T
    found = far + inside @ change(writer, WRITES, Q, None).T
    torch.testing.assert_close(found.double(), wanted.double() @ Q, rtol=1e-4, atol=1e-5)


def test_of_a_narrow_stream_the_norms_are_those_of_the_whole_width():
    """√(‖y‖²/d) of a stock norm is made up for: what a reader sees is y/√(‖y‖²/D)."""
    Q, gain, x = rotation()[:, :KEPT], torch.rand(D) + 0.5, matrix(5, D, seed=2)
    reader = matrix(OUT, D, seed=3)
    stock = rms_norm(slice_weight(x, START, Q, None), slice_weight(gain, NORM, Q, None), KEPT)
    found = stock @ slice_weight(reader, READ, Q, gain).T
    y = x.double() @ Q
    wanted = rms_norm(y, torch.ones(()), D) @ (reader.double() * gain @ Q).T
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


def test_embeddings_and_writers_stay_in_proportion():
    """Both are added up in the stream, so both shrink by √(d/D)."""
    Q = rotation()[:, :KEPT]
    shrunk = (KEPT / D) ** 0.5
    table, writer = matrix(OUT, D, seed=5), matrix(D, OUT, seed=6)
    found = slice_weight(table, START, Q, None), slice_weight(writer, WRITES, Q, None)
    expected = shrunk * table.double() @ Q, shrunk * Q.T @ writer.double()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=1e-6)


def test_biases_of_writers_turn_and_those_of_readers_stay():
    Q = rotation()[:, :KEPT]
    bias = matrix(D, seed=7)
    torch.testing.assert_close(
        rotate_weight(bias, f"{WRITES}.bias", Q, None).double(),
        Q.T @ bias.double(),
        rtol=1e-6,
        atol=1e-6,
    )
    assert torch.equal(rotate_weight(bias, f"{READ}.bias", Q, None), bias)


# ---------------------------------------------------------------------------- the basis


def covariance(seed: int = 0) -> Tensor:
    """Eigenvalues 1, 4, …, 144 · and two that float32 cannot tell apart."""
    Q = rotation(seed)
    values = torch.arange(1, D + 1).double() ** 2
    values[1] = values[0] * (1 + 1e-9)
    return (Q * values) @ Q.T


def test_directions_are_eigenvectors_by_falling_energy_with_signs_set():
    C = covariance()
    Q = principal_directions(C)
    energy = (Q.T @ C @ Q).diagonal()
    assert (energy.diff() <= 1e-8).all()
    assert torch.allclose(C @ Q, Q * energy, atol=1e-9)
    assert torch.allclose(Q.T @ Q, torch.eye(D).double(), atol=1e-12)
    largest = Q.gather(0, Q.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


@pytest.mark.parametrize("orientation", ["random", "hadamard"])
def test_a_turn_stays_in_the_space_is_orthogonal_and_follows_its_seed(orientation):
    Q = principal_directions(covariance())
    first, again, other = (orient(Q, KEPT, orientation, seed) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.allclose(first.T @ first, torch.eye(KEPT).double(), atol=1e-12)
    assert torch.allclose(first @ first.T, Q[:, :KEPT] @ Q[:, :KEPT].T, atol=1e-12)
    assert not torch.allclose(first.abs(), Q[:, :KEPT].abs(), atol=0.05)


def test_the_random_turn_favours_no_direction():
    """Of a uniform rotation the traces have mean 0 (and variance 1); without its signs set, the
    triangle of a QR leaves a diagonal of one sign."""
    eye = torch.eye(6).double()
    traces = torch.stack([orient(eye, 6, "random", seed).trace() for seed in range(400)])
    assert abs(float(traces.mean())) < 0.2  # four standard deviations
    assert float(traces.var()) == pytest.approx(1.0, abs=0.3)
