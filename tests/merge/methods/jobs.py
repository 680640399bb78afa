"""Jobs for any method: as many models as it takes, values within their ranges."""

from __future__ import annotations

import torch
from torch import Tensor

from edgepack.merge import methods
from edgepack.merge.methods.base import REQUIRED, Base, Job, Method, Parameter

SETTINGS = {"density": 0.5, "epsilon": 0.1, "t": 0.3, "weight": 0.6, "select_topk": 0.5}
"""Values that make a method do something."""


def models_of(method: Method, most: int = 3) -> int:
    return min(most, method.most or most)


def make_tensors(
    method: Method, shape: tuple[int, ...], dtype=torch.float32, seed=0
) -> list[Tensor]:
    """A base, then models near it."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    models = [
        base + 0.05 * torch.randn(shape, generator=generator) for _ in range(models_of(method))
    ]
    return [tensor.to(dtype) for tensor in (base, *models)]


def job_of(method: Method, tensors: list[Tensor], name="blk.0.attn_q.weight", **fields) -> Job:
    """The first tensor is the base, if the method has one."""
    models = tensors[1:]
    weights = [0.6 - 0.1 * i for i in range(len(models))]
    return Job(
        name,
        models,
        None if method.base is Base.ORDINARY else tensors[0],
        [
            method.complete(_given(method, True) | _weight(method, w), of_model=True)
            for w in weights
        ],
        method.complete(_given(method, False), of_model=False),
        **fields,
    )


def _weight(method: Method, weight: float) -> dict[str, float]:
    return {"weight": weight} if any(p.name == "weight" for p in method.parameters) else {}


def _given(method: Method, of_model: bool) -> dict[str, object]:
    chosen = [p for p in method.parameters if p.of_model == of_model and _set(p)]
    return {p.name: SETTINGS.get(p.name, 1.0) for p in chosen}


def _set(parameter: Parameter) -> bool:
    in_ram = parameter.name == "epsilon" and not parameter.of_model
    return parameter.default is REQUIRED or (parameter.name in SETTINGS and not in_ram)


ALL = [methods.get(name) for name in methods.names()]
