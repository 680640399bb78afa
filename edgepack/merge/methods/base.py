"""What a merge method is: a pure function of one tensor of every model, and facts about it as data.

The facts are enough to check a recipe before any weight is read: how many models, whether there is
a base, which parameters there are. A method computes in float32 whatever its inputs are stored in
(in float64 if one of them is), so that rounding to a file's type happens once, at the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgepack.core.plugins import suggest
from edgepack.core.untrusted import quote, shorten
from edgepack.errors import CheckpointError, RecipeError
from edgepack.merge.methods._blocks import BLOCK
from edgepack.merge.methods._values import REQUIRED, Parameter, Value

__all__ = ["REQUIRED", "Base", "Job", "Method", "Parameter", "Promise", "Value"]

Values = Mapping[str, Value]
DRAWN = 4 * BLOCK
"""Elements whose random numbers come from one generator."""


class Base(Enum):
    """What a recipe's `base_model` is to a method."""

    ORDINARY = "a model like the others"
    OPTIONAL = "differences to it are merged if there is one"
    REQUIRED = "differences to it are merged"


class Promise(Enum):
    """Properties that a method has; `tests/merge/methods/test_contract.py` holds it to them."""

    IDEMPOTENT = "equal inputs give that input, up to rounding, if the weights are positive"
    SYMMETRIC = "the order of the models does not matter, up to rounding"


@dataclass(frozen=True)
class Job:
    """One tensor to merge. All tensors have one shape; they are read, never written."""

    name: str
    """Of the tensor, as the output stores it. It is part of the seed."""
    tensors: Sequence[Tensor]
    """That of every model but the base, in the recipe's order; of any floating-point type."""
    base: Tensor | None = None
    of_models: Sequence[Values] = ()
    """Parameters of each of `tensors`, complete (`Method.complete`)."""
    parameters: Values = field(default_factory=dict)
    """Parameters for the whole, complete."""
    seed: int = 0
    """The recipe's."""

    def random(self, model: int, block: slice) -> Tensor:
        """Uniform random numbers of [0, 1) for elements of a model's flat tensor, float32.

        They depend on the seed, the tensor's name, the model's index and the element's, hence not
        on the order of tensors, on threads, or on what was drawn before.
        """
        first, last = block.start // DRAWN, -(-block.stop // DRAWN)
        parts = [_draw(self.seed, self.name, model, part) for part in range(first, last)]
        drawn = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return torch.from_numpy(drawn)[block.start - first * DRAWN : block.stop - first * DRAWN]

    def numbers(self, parameter: str) -> list[float]:
        """The values of a number that each model has."""
        return [float(values[parameter]) for values in self.of_models]


@lru_cache(maxsize=16)
def _draw(seed: int, name: str, model: int, part: int) -> NDArray[np.float32]:
    """The numbers of a run of `DRAWN` elements. Blocks are smaller, so some are kept."""
    digest = hashlib.sha256(f"{seed}\n{model}\n{part}\n{name}".encode()).digest()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))
    return generator.random(DRAWN, dtype=np.float32)


@dataclass(frozen=True)
class Method:
    """A way to merge, and what a recipe may say of it."""

    name: str
    """As recipes write it; also that of the module."""
    function: Callable[[Job], Tensor]
    """What `merge` calls once the job is known to be one for this method."""
    meaning: str
    """One line for a list of methods."""
    base: Base = Base.ORDINARY
    fewest: int = 1
    """Fewest models, the base not counted."""
    most: int | None = None
    """Most models, the base not counted; None: any number."""
    parameters: tuple[Parameter, ...] = ()
    check: Callable[[Sequence[Values], Values], str | None] | None = None
    """What is wrong with values taken together, those of models and those for the whole."""
    promises: frozenset[Promise] = frozenset()
    temporaries: float = 1.0
    """Memory beside the inputs and the float32 result, at most: in float32 tensors of that size.
    What arithmetic on blocks takes is not counted, some 16 MiB."""
    temporaries_per_model: float = 0.0
    """The same, to be multiplied by the number of models."""
    shares: bool = False
    """Whether the result may be an input itself, in its own type."""

    def merge(self, job: Job) -> Tensor:
        """The merged tensor: float32 (float64 if an input is), of the shape of the inputs.

        It shares memory with an input only if `shares` is set. Raises `RecipeError` for a job that
        the method cannot do, `CheckpointError` for tensors of several shapes.
        """
        self.check_models(len(job.tensors), job.base is not None, job.name)
        self.check_values(job.of_models, job.parameters, job.name)
        tensors = [*job.tensors, *([] if job.base is None else [job.base])]
        shapes = list(dict.fromkeys(tuple(tensor.shape) for tensor in tensors))
        if len(shapes) > 1:
            listed = ", ".join(str(list(shape)) for shape in shapes)
            raise CheckpointError(
                f"{job.name}: the models have shapes {listed}",
                hint="merge models of one architecture and vocabulary",
            )
        if not tensors[0].numel():
            return tensors[0].float()
        return self.function(job)

    def check_values(
        self, of_models: Sequence[Values], whole: Values, place: str = "parameters"
    ) -> None:
        """Refuse values, complete ones, that do not go together. Raises `RecipeError`."""
        problem = self.check(of_models, whole) if self.check else None
        if problem:
            raise RecipeError(f"{place}: {problem}", hint=f"{self.name}: {self.meaning}")

    def check_models(self, models: int, has_base: bool, place: str = "merge") -> None:
        """Refuse a number of models (the base not counted) that the method cannot merge, or a base
        that is missing. Raises `RecipeError`."""
        if self.base is Base.REQUIRED and not has_base:
            raise RecipeError(
                f"{place}: {self.name} needs a base_model", hint="add `base_model: …`"
            )
        if models < self.fewest or (self.most is not None and models > self.most):
            beside = " beside the base" if self.base is Base.REQUIRED else ""
            raise RecipeError(
                f"{place}: {self.name} merges {self._range()}{beside}, not {models}",
                hint=f"{self.name}: {self.meaning}",
            )

    def _range(self) -> str:
        if self.fewest == self.most:
            return f"{self.fewest} model{'s' * (self.fewest != 1)}"
        if self.most is None:
            return f"at least {self.fewest} model{'s' * (self.fewest != 1)}"
        return f"{self.fewest} to {self.most} models"

    def parameter(self, name: str, place: str = "parameters") -> Parameter:
        """The parameter of that name; a `RecipeError` with "did you mean" where there is none."""
        known = {parameter.name: parameter for parameter in self.parameters}
        if name in known:
            return known[name]
        word = shorten(str(name), 60)
        hint = suggest(word, tuple(known)) if known else f"{self.name} has no parameters"
        raise RecipeError(f"{place}: {self.name} has no parameter {quote(word)}", hint=hint)

    def complete(
        self, given: Mapping[str, object], *, of_model: bool, place: str = "parameters"
    ) -> dict[str, Value]:
        """The values of one model's parameters, or of those for the whole, with defaults filled in.

        A parameter of the other kind is checked and left out: in a recipe both may stand at the
        top, where those of models hold for all of them. Raises `RecipeError` in one line for what
        is unknown, of another type, out of range or missing.
        """
        values = {
            name: self.parameter(name, place).read(value, f"{place}.{name}")
            for name, value in given.items()
        }
        result: dict[str, Value] = {}
        for parameter in self.parameters:
            if parameter.of_model == of_model:
                if parameter.name not in values and parameter.default is REQUIRED:
                    raise RecipeError(
                        f"{place}: {self.name} needs {parameter.name}",
                        hint=f"{parameter.name}: {parameter.meaning}",
                    )
                if parameter.name in values:
                    result[parameter.name] = values[parameter.name]
                elif isinstance(parameter.default, float | int | bool):
                    result[parameter.name] = parameter.default
        return result
