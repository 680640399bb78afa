"""What is trained: L and R themselves, or a new pair on top of them.

Masters are float32. The forward pass uses them rounded to what the file stores, and the gradient
there is applied to the masters (straight-through, arXiv 1308.3432): the evaluated model is the one
that is written.
"""

from __future__ import annotations

import math
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from edgepack.adapters.adapter import Lora
from edgepack.adapters.base import PackedBase
from edgepack.adapters.gguf import Pair as StoredPair
from edgepack.architectures.base import LINEAR_ROLES
from edgepack.checkpoint import Checkpoint
from edgepack.core.accelerator import moved
from edgepack.core.weights import FactoredWeight, QuantizedTensor
from edgepack.errors import EdgepackError
from edgepack.finetune.frozen import Pair, frozen_pairs
from edgepack.recipe.training import Finetune
from edgepack.recover.trainable import apply_masters

Masters = dict[str, Tensor]
"""``WEIGHT lora_A`` and ``WEIGHT lora_B`` → float32."""
USUAL = 0.025
"""Root mean square of lora_A as PEFT begins it, for a width of 576: the size of a value that the
learning rate is meant for."""


def targets(model: Checkpoint, options: Finetune) -> list[str]:
    """Weights of the blocks that the options name, as PEFT reads ``target_modules`` (names or their
    ends, a regular expression, or ``all-linear``, which leaves experts out: they are not trained)
    and ``layers_to_transform``."""
    wanted, layers = options.target_modules, options.layers_to_transform
    linear = [
        spec
        for spec in model.specs.values()
        if spec.role in LINEAR_ROLES and (layers is None or spec.block in layers)
    ]
    if wanted == "all-linear":
        linear = [spec for spec in linear if spec.expert is None]
    found = [s.name for s in linear if _is_target(s.name.removesuffix(".weight"), wanted)]
    if experts := [s.name for s in linear if s.expert is not None and s.name in found]:
        raise EdgepackError(
            f"finetune.target_modules: {experts[0]} is an expert's, and experts are not trained",
            hint="name the attention's modules, such as [q_proj, k_proj, v_proj, o_proj]",
        )
    if not found:
        known = sorted({s.name.removesuffix(".weight").rpartition(".")[2] for s in linear})
        raise EdgepackError(
            "finetune.target_modules: no weight of the model's blocks is called so",
            hint="modules here: " + ", ".join(known or ["none in these layers"]),
        )
    return found


def _is_target(module: str, wanted: str | Sequence[str]) -> bool:
    if wanted == "all-linear":
        return True
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in wanted)


@dataclass
class Trained(ABC):
    """Masters by weight, and the frozen factors beside them. `names` are the trained weights."""

    base: PackedBase
    names: Sequence[str]
    masters: Masters = field(default_factory=dict)
    step: int = 0
    """Of training; dropout differs from step to step."""

    def pairs(self, name: str) -> list[Pair]:
        """All terms beside Q·x of a weight."""
        own = [self.pair(name)] if f"{name} lora_A" in self.masters else []
        return [*self._fixed(name), *own]

    def to(self, device: torch.device) -> None:
        """Move it all to a device."""
        self.masters = moved(self.masters, device)

    def without(self, name: str) -> list[Pair]:
        """The same before any training: the model as it was packed."""
        return frozen_pairs(self.base, name)

    @abstractmethod
    def _fixed(self, name: str) -> list[Pair]:
        """Terms that are not trained."""

    @abstractmethod
    def pair(self, name: str) -> Pair:
        """The masters of a weight, rounded, as leaves to differentiate by. Made anew at every use:
        kept, they would take as much memory as the masters."""

    @abstractmethod
    def unit(self, key: str) -> float:
        """What the learning rate of a master is multiplied by."""

    @abstractmethod
    def difference(self) -> dict[str, Lora]:
        """What training adds to the packed model, by weight."""


@dataclass
class Factors(Trained):
    """L and R are trained: the same formats and bytes, so the same speed."""

    stored: dict[str, FactoredWeight] = field(default_factory=dict)
    units: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def start(base: PackedBase, names: Sequence[str]) -> Factors:
        """With L and R as they are; weights without any are left out."""
        kept = [name for name in names if name in base.ranks]
        made = Factors(base, kept)
        made.stored = {name: _factored(base, name) for name in kept}
        for name, weight in made.stored.items():
            A, B = _pair(weight)
            made.masters |= {f"{name} lora_A": A.clone(), f"{name} lora_B": B.clone()}
        made.units = {key: _rms(value) / USUAL for key, value in made.masters.items()}
        return made

    @staticmethod
    def check(names: Sequence[str], ranks: Mapping[str, int]) -> None:
        """Refuse a model without L and R for any of the weights."""
        if not any(name in ranks for name in names):
            raise EdgepackError(
                "finetune.mode: factors, but the model has no factors L·R to train there",
                hint="use mode: stack, or build the recipe with a rank",
            )

    def to(self, device: torch.device) -> None:
        """See `Trained`."""
        super().to(device)
        self.stored = {name: weight.to(device) for name, weight in self.stored.items()}

    def _fixed(self, name: str) -> list[Pair]:
        return [] if name in self.stored else frozen_pairs(self.base, name)

    def rounded(self, name: str) -> FactoredWeight:
        """L and R of a weight as they would be stored now (its Q is left out)."""
        parts = {"L": self.masters[f"{name} lora_B"], "R": self.masters[f"{name} lora_A"]}
        return apply_masters(self.stored[name], parts)

    def stored_pairs(self) -> dict[str, StoredPair]:
        """L and R of all weights that have any, trained or not, in their formats."""
        now = {name: self.rounded(name) for name in self.names}
        found = {}
        for name in self.base.ranks:
            L, R = (now[name].L, now[name].R) if name in now else self.base.pair(name)
            if L is None or R is None:
                raise ValueError(f"{name} has no factors")
            found[name] = StoredPair(L, R)
        return found

    def pair(self, name: str) -> Pair:
        """See `Trained`."""
        A, B = _pair(self.rounded(name))
        return Pair(A.requires_grad_(), B.requires_grad_())

    def unit(self, key: str) -> float:
        """The root mean square of a factor at the start, beside that of a usual lora_A."""
        return self.units[key]

    def difference(self) -> dict[str, Lora]:
        """L'·R' − L·R, of twice the rank."""
        found = {}
        for name in self.names:
            own, (A, B) = self.pair(name), _pair(self.stored[name])
            found[name] = Lora.joined([Lora(own.A.detach(), own.B.detach()), Lora(A, -B)])
        return found


@dataclass
class Stack(Trained):
    """A new pair of rank r on top of Q + L·R, scaled by lora_alpha / r. `origin` is what it starts
    as where that must not change the model (PiSSA): it is subtracted."""

    scale: float = 1.0
    dropout: float = 0.0
    seed: int = 0
    origin: dict[str, Pair] = field(default_factory=dict)

    @staticmethod
    def start(
        base: PackedBase, names: Sequence[str], options: Finetune, begun: Mapping[str, Lora]
    ) -> Stack:
        """With the pairs `begun` for PiSSA and EoRA, else as PEFT begins: lora_A uniform, lora_B
        zero."""
        scale = options.lora_alpha / options.r
        made = Stack(base, names, scale=scale, dropout=options.lora_dropout, seed=options.seed)
        for name in names:
            out, columns = base.checkpoint.specs[name].shape
            pair = begun.get(name)
            if pair is None:
                generator = torch.Generator().manual_seed(_number(options.seed, name))
                bound = 1 / math.sqrt(columns)  # kaiming_uniform_ with a = √5, as in PEFT
                A = (2 * torch.rand(options.r, columns, generator=generator) - 1) * bound
                pair = Lora(A, torch.zeros(out, options.r))
            made.masters[f"{name} lora_A"] = pair.lora_A.clone()
            made.masters[f"{name} lora_B"] = pair.lora_B / scale
        if options.init_lora_weights == "pissa":
            made.origin = {name: made._subtracted(name) for name in names}
        return made

    def to(self, device: torch.device) -> None:
        """See `Trained`."""
        super().to(device)
        self.origin = {name: pair.to(device) for name, pair in self.origin.items()}

    def _subtracted(self, name: str) -> Pair:
        """The pair as it is now, frozen, with the other sign."""
        own = self.pair(name)
        return Pair(own.A.detach(), own.B.detach(), -own.scale)

    def _fixed(self, name: str) -> list[Pair]:
        return [
            *frozen_pairs(self.base, name),
            *([self.origin[name]] if name in self.origin else []),
        ]

    def pair(self, name: str) -> Pair:
        """See `Trained`; the file stores float16."""
        A, B = (self.masters[f"{name} {p}"].half().float() for p in ("lora_A", "lora_B"))
        seed = _number(self.seed, f"{self.step} {name}")
        return Pair(A.requires_grad_(), B.requires_grad_(), self.scale, self.dropout, seed)

    def unit(self, key: str) -> float:
        """Every value moves alike."""
        return 1.0

    def difference(self) -> dict[str, Lora]:
        """The new pair; for PiSSA without what it started as, of twice the rank."""
        found = {}
        for name in self.names:
            own = self.pair(name)
            parts = [Lora(own.A.detach(), own.B.detach() * own.scale)]
            if name in self.origin:
                start = self.origin[name]
                parts.append(Lora(start.A, start.B * start.scale))
            found[name] = Lora.joined(parts)
        return found


def undropped(pairs: Sequence[Pair]) -> list[Pair]:
    """The same terms without dropout, for evaluation."""
    return [replace(pair, dropout=0.0) for pair in pairs]


def _pair(weight: FactoredWeight) -> tuple[Tensor, Tensor]:
    """(R, L) of a weight that has both, as lora_A and lora_B."""
    if weight.L is None or weight.R is None:
        raise ValueError("the weight has no factors")
    return weight.R.dequantize(), weight.L.dequantize()


def _factored(base: PackedBase, name: str) -> FactoredWeight:
    """L and R of a weight, with an empty Q in place of its own."""
    empty = QuantizedTensor("f16", torch.empty(0, 0, dtype=torch.float16), {})
    return FactoredWeight(empty, *base.pair(name))


def _rms(x: Tensor) -> float:
    return max(float(x.square().mean().sqrt()), 1e-12)


def _number(seed: int, text: str) -> int:
    """A seed of its own for every text."""
    return (seed * 1_000_003 + zlib.crc32(text.encode())) % (1 << 62)
