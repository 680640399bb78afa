"""What every merge method must keep; one in a new file is tested by being there."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgepack.core import plugins
from edgepack.errors import CheckpointError, RecipeError
from edgepack.merge import methods
from edgepack.merge.methods.base import Base, Promise
from tests.merge.methods.jobs import ALL, job_of, make_tensors

pytestmark = pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)
SHAPES = [(), (1,), (7,), (1, 1), (1, 5), (5, 1), (6, 9), (2, 3, 4)]
LARGE = (640, 512)
"""More elements than are summed at once, and than torch computes with one thread."""


def test_it_is_a_plug_in_that_says_what_it_is(method):
    assert plugins.find(methods.KIND, method.name) is method
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.name = "other"
    assert len(method.meaning.splitlines()) == 1
    about = sys.modules[plugins.module(methods.KIND, method.name)].__doc__
    assert any(source in about for source in ("arXiv", "doi", "without a paper", "a practice"))
    names = [parameter.name for parameter in method.parameters]
    assert len(names) == len(set(names))
    assert all(len(parameter.meaning.splitlines()) == 1 for parameter in method.parameters)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shape_and_type(method, shape):
    result = method.merge(job_of(method, make_tensors(method, shape)))
    assert result.shape == shape
    assert result.dtype == torch.float32
    assert result.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_computes_in_float32_or_more(method, dtype):
    tensors = make_tensors(method, (6, 9), dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    result = method.merge(job_of(method, tensors))
    assert result.dtype == wide or method.shares
    widened = method.merge(job_of(method, [tensor.to(wide) for tensor in tensors]))
    assert torch.equal(result.to(wide), widened)


def test_is_repeatable_and_leaves_its_inputs_alone(method):
    tensors = make_tensors(method, (6, 9))
    before = [tensor.clone() for tensor in tensors]
    job = job_of(method, tensors)
    first = method.merge(job).clone()
    method.merge(replace(job, name="another.weight"))
    assert torch.equal(method.merge(job), first)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))


def test_strides_do_not_matter(method):
    tensors = make_tensors(method, (9, 6))
    turned = [tensor.T for tensor in tensors]
    copied = [tensor.contiguous() for tensor in turned]
    a, b = (method.merge(job_of(method, x)) for x in (turned, copied))
    assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_threads_do_not_matter(method):
    job = job_of(method, make_tensors(method, LARGE))
    with threads(1):
        alone = method.merge(job)
    with threads(2):
        assert torch.equal(method.merge(job), alone)


@pytest.mark.parametrize("shape", [(7,), (6, 9), LARGE], ids=str)
def test_equal_inputs_give_that_input(method, shape):
    if Promise.IDEMPOTENT not in method.promises:
        pytest.skip("not promised")
    tensors = make_tensors(method, shape)
    result = method.merge(job_of(method, [tensors[0]] * len(tensors)))
    assert torch.allclose(result, tensors[0], rtol=1e-5, atol=1e-6)


def test_the_order_of_models_does_not_matter(method):
    if Promise.SYMMETRIC not in method.promises:
        pytest.skip("not promised")
    job = job_of(method, make_tensors(method, (6, 9)))
    turned = replace(job, tensors=job.tensors[::-1], of_models=job.of_models[::-1])
    assert torch.allclose(method.merge(job), method.merge(turned), rtol=1e-5, atol=1e-6)


def test_fewest_models(method):
    tensors = make_tensors(method, (6, 9))[: method.fewest + 1]
    assert method.merge(job_of(method, tensors)).isfinite().all()


@pytest.mark.parametrize("shape", [(5,), (6, 9)], ids=str)
@pytest.mark.parametrize("size", [0, 1e-42, 1e-12, 1e15, 1e30])
def test_any_size_gives_finite_values(method, size, shape):
    tensors = [tensor * size for tensor in make_tensors(method, shape)]
    result = method.merge(job_of(method, tensors))
    assert result.isfinite().all()
    assert size or not result.any()


@pytest.mark.parametrize("which", ["base", "first", "opposite"])
def test_zeros_and_opposites_give_finite_values(method, which):
    tensors = make_tensors(method, (6, 9))
    if which == "opposite":
        tensors[1:] = [tensors[0] * (-1) ** i for i in range(1, len(tensors))]
    else:
        tensors[which == "first"] = torch.zeros(6, 9)
    assert method.merge(job_of(method, tensors)).isfinite().all()


def test_an_empty_tensor_stays_empty(method):
    assert method.merge(job_of(method, make_tensors(method, (0, 4)))).shape == (0, 4)


def test_memory(method):
    tensors = make_tensors(method, (4096, 512))
    job = job_of(method, tensors)
    method.merge(job_of(method, make_tensors(method, (6, 9))))
    peak = Peak(tensors)
    with peak:
        method.merge(job)
    size = tensors[0].nbytes
    models = len(job.tensors)
    result = 0 if method.shares else 1
    allowed = result + method.temporaries + method.temporaries_per_model * models
    assert peak.bytes <= allowed * size + (2 << 20)


def test_wrong_models_are_one_line(method):
    job = job_of(method, make_tensors(method, (6, 9)))
    with pytest.raises(RecipeError, match=f"{method.name} merges"):
        method.merge(replace(job, tensors=()))
    if method.most:
        with pytest.raises(RecipeError, match=f"{method.name} merges"):
            method.merge(replace(job, tensors=[*job.tensors] * 3))
    if method.base is Base.REQUIRED:
        with pytest.raises(RecipeError, match="needs a base_model"):
            method.merge(replace(job, base=None))


def test_shapes_that_differ_are_one_line(method):
    job = job_of(method, make_tensors(method, (6, 9)))
    others = [*job.tensors[:-1], torch.zeros(5, 9)]
    if len(others) + (job.base is not None) < 2:
        pytest.skip("one tensor only")
    with pytest.raises(
        CheckpointError, match=r"blk.0.attn_q.weight: .*\[6, 9\].*\[5, 9\]|\[5, 9\]"
    ):
        method.merge(replace(job, tensors=others))


def test_wrong_parameters_are_one_line(method):
    with pytest.raises(RecipeError, match="has no parameter 'densty'"):
        method.complete({"densty": 0.5}, of_model=True)
    for parameter in method.parameters:
        with pytest.raises(RecipeError, match="is needed, not 'x'"):
            method.complete({parameter.name: "x"}, of_model=parameter.of_model)
        with pytest.raises(RecipeError, match="is needed, not nan"):
            method.complete({parameter.name: float("nan")}, of_model=parameter.of_model)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Peak(TorchDispatchMode):
    """The most memory of tensors that torch made and that lived at the same time, in bytes."""

    def __init__(self, inputs: list[torch.Tensor]) -> None:
        super().__init__()
        self.inputs = {tensor.untyped_storage()._cdata for tensor in inputs}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self.inputs:
                    self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        gone = [key for key, (storage, _) in self.alive.items() if storage.expired()]
        for key in gone:
            del self.alive[key]
        self.bytes = max(self.bytes, sum(size for _, size in self.alive.values()))
        return result
