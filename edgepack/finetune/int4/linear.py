"""A linear layer that trains in low-bit integers."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from edgepack.errors import RecipeError
from edgepack.finetune.int4 import sampling
from edgepack.finetune.int4.hadamard import choose_block, rotate
from edgepack.finetune.int4.lsq import initial_step, largest_code, quantize

Quantizer = Literal["hq", "lsq", "none"]
"""How inputs and weights are rounded: in a Hadamard domain, as they are, or not at all."""
Gradient = Literal["lss", "split", "none"]
"""How the gradient at the output is rounded: split into 4-bit halves and sampled to the work of one
(the paper), split with all rows kept (its published code; 8 bits in effect), or not at all."""


class Linear(torch.nn.Linear):
    """`torch.nn.Linear` in the arithmetic of arXiv 2306.11987, simulated in float32.

    The settings of its tables: FP32 is `torch.nn.Linear`; INT8 is ``bits=8, gradient="split"``;
    HQ+LSS the default; LSQ alone ``quantizer="lsq", gradient="none"``. As there, biases, steps and
    the Hadamard product stay in floating point, and steps are one number a tensor.

    The first batch chooses the block of H and the first steps. `warm_up` training batches choose
    the steps anew before they are learned (for training from scratch, where weights soon change).
    Random numbers follow from `seed` and the count of training batches. That count is in the state
    dict, so a resumed run draws the same; give each layer a seed of its own.
    """

    step_x: torch.nn.Parameter
    step_w: torch.nn.Parameter
    block: Tensor
    batches: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        quantizer: Quantizer = "hq",
        gradient: Gradient = "lss",
        bits: int = 4,
        seed: int = 0,
        warm_up: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        _check(quantizer, "quantizer", get_args(Quantizer))
        _check(gradient, "gradient", get_args(Gradient))
        largest_code(bits)
        self.quantizer, self.gradient = quantizer, gradient
        self.bits, self.seed, self.warm_up = bits, seed, warm_up
        if quantizer != "none":
            one = torch.ones((), device=device)
            self.step_x = torch.nn.Parameter(one)
            self.step_w = torch.nn.Parameter(one.clone())
        count = torch.zeros((), device=device, dtype=torch.int64)
        self.register_buffer("block", count)  # columns of a block of H; 0 before the first batch
        self.register_buffer("batches", count.clone())

    @classmethod
    def from_linear(cls, linear: torch.nn.Linear, **options: Any) -> Linear:
        """The same layer with the same parameters (not copies); options as in the constructor."""
        weight, has_bias = linear.weight, linear.bias is not None
        shape = (linear.in_features, linear.out_features, has_bias)
        layer = cls(*shape, **options, device=weight.device, dtype=weight.dtype)
        layer.weight, layer.bias = weight, linear.bias
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """x ``[…, in]`` → ``[…, out]``, in x's type. Between them it is float32, since types of 16
        bits could not hold an 8-bit code and the fraction that is rounded."""
        X, W = x.reshape(-1, self.in_features).float(), self.weight.float()
        if self.quantizer != "none":
            X, W = self._quantize(X, W)
        if self.gradient == "none":
            y = X @ W.T
        else:
            numbers = (self.seed, int(self.batches))
            y = _Product.apply(X, W, self.gradient == "lss", numbers)  # type: ignore[no-untyped-call]
        if self.training:
            self.batches += 1
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _quantize(self, X: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        """Both rounded in the domain of H, where they stay: H cancels in the product."""
        first = int(self.block) == 0
        if first:
            self.block.fill_(choose_block(X, W, self.bits) if self.quantizer == "hq" else 1)
        X, W = rotate(X, int(self.block)), rotate(W, int(self.block))
        if first or (self.training and int(self.batches) < self.warm_up):
            with torch.no_grad():
                self.step_x.copy_(initial_step(X, self.bits))
                self.step_w.copy_(initial_step(W, self.bits))
        return quantize(X, self.step_x, self.bits), quantize(W, self.step_w, self.bits)

    def extra_repr(self) -> str:
        """The options beside the shape."""
        options = f"quantizer={self.quantizer}, gradient={self.gradient}, bits={self.bits}"
        return f"{super().extra_repr()}, {options}"


def convert(model: torch.nn.Module, *, keep: tuple[str, ...] = (), **options: Any) -> list[str]:
    """Replace every `torch.nn.Linear` in a model by `Linear` with these options; returns the names.

    Layers named in `keep` stay (the paper keeps the last classifier). A layer's seed is `seed` plus
    its place in the order.
    """
    seed = options.pop("seed", 0)
    kinds = [(name, m) for name, m in model.named_modules() if type(m) is torch.nn.Linear]
    chosen = [(name, linear) for name, linear in kinds if name not in keep]
    for place, (name, linear) in enumerate(chosen):
        model.set_submodule(name, Linear.from_linear(linear, seed=seed + place, **options))
    return [name for name, _ in chosen]


def _check(value: str, key: str, values: tuple[str, ...]) -> None:
    if value not in values:
        raise RecipeError(f"{key} is {value}", hint=f"use {', '.join(values)}")


class _Product(torch.autograd.Function):
    """x Wᵀ whose gradients are computed from 4-bit halves of the gradient at the output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, sampled: bool, numbers: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, W)
        ctx.sampled, ctx.numbers = sampled, numbers
        return x @ W.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, W = ctx.saved_tensors
        generator = sampling.make_generator(g.device, *ctx.numbers)
        halves = sampling.split_bits(g, generator)
        of_x = of_W = None
        if ctx.needs_input_grad[0]:
            p = sampling.activation_probabilities(halves) if ctx.sampled else None
            of_x = sampling.activation_gradient(halves, W, p, generator)
        if ctx.needs_input_grad[1]:
            p = sampling.weight_probabilities(halves, x) if ctx.sampled else None
            of_W = sampling.weight_gradient(halves, x, p, generator)
        return of_x, of_W, None, None
