"""Our merge methods beside mergekit's: the same numbers. (`merge_times`: seconds and memory.)

    OTHER/bin/python -m benchmarks.merge_parity make FOLDER [--shapes 6x16,13]
    OTHER/bin/python -m benchmarks.merge_parity llama FOLDER
    python -m benchmarks.merge_parity compare FOLDER

OTHER is an environment with mergekit (`pip install 'mergekit>=0.1.5,<0.2'`) and needs nothing else.

`make` merges random tensors by every method under many settings; `llama` the tensors of tiny
Llamas, through `merge_state_dicts`. They keep inputs, settings, results, and the random masks that
mergekit drew. `compare` merges the same and says how far apart the results are. The golden vectors
in tests/merge/methods/golden are made by `make` with its defaults.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

MODELS = 4
WEIGHTS = [[1.0, 0.5], [0.3, -0.7], [1.0, -1.0], [0.2, 0.5, 0.3], [0.4, -0.1, 0.9, 0.6]]
"""Also negative ones, and some that cancel out."""
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
INPUTS = "inputs.safetensors"
YES, NO = True, False
SPARSE = [(0.1, YES, NO), (0.1, NO, YES), (1.0, YES, YES)]
SPARSE += [(0.5, normalize, rescale) for normalize, rescale in product((YES, NO), (YES, NO))]
"""density, normalize, rescale."""


@dataclass(frozen=True)
class Case:
    """One merge: by which method, of how many models, with which values."""

    method: str
    models: int
    base: bool
    of_models: dict[str, list[float]] = field(default_factory=dict)
    whole: dict[str, Any] = field(default_factory=dict)

    @property
    def draws(self) -> int:
        """How many masks mergekit draws for it."""
        return self.models * (self.method in RANDOM and self.of_models["density"][0] < 1)

    def take(self, inputs: Tensor) -> list[Tensor]:
        """Of a base and models, those that it merges."""
        return list(inputs[not self.base : self.models + 1])


def cases() -> Iterator[Case]:
    """All settings of all methods."""
    for weights in WEIGHTS:
        yield from _weighted(weights)
    for t in (0.0, 0.3, 0.5, 1.0):
        yield Case("slerp", 1, True, whole={"t": t})
    for t in (0.0, 1e-3, 1e-2, 1.0):
        yield Case("nearswap", 1, True, whole={"t": t})
    for models in (1, 2, 3, 4):
        yield Case("karcher", models, False)
        yield Case("karcher", models, False, whole={"max_iter": 2, "tol": 1e-4})
        for epsilon in (1e-5, 1e-2):
            yield Case("ram", models, True, whole={"epsilon": epsilon})
            more = {"epsilon": epsilon, "r": 0.5, "alpha": 0.4}
            yield Case("ramplus_tl", models, True, whole=more)
        for share in (0.1, 0.5, 1.0):
            yield Case("sce", models, True, whole={"select_topk": share})
        if models > 1:
            for by_row in (False, True):
                yield Case("model_stock", models, True, whole={"filter_wise": by_row})
    yield Case("arcee_fusion", 1, True)
    yield Case("passthrough", 1, False)
    yield Case("passthrough", 1, False, {"scale": [0.7]})


def _weighted(weights: list[float]) -> Iterator[Case]:
    """The methods that have a weight for each model."""
    models, of_models = len(weights), {"weight": weights}
    balanced = abs(sum(weights)) < 1e-6
    for normalize in (True, False):
        if not (balanced and normalize):
            yield Case("linear", models, False, of_models, {"normalize": normalize})
            for base in (True, False):
                whole = {"normalize_weights": normalize}
                yield Case("multislerp", models, base, of_models, whole)
        yield Case("task_arithmetic", models, True, of_models, {"normalize": normalize})
    yield Case("task_arithmetic", models, True, of_models, {"lambda": 0.6, "int8_mask": True})
    if models == 2:
        for base, flatten, by_row in product((True, False), (True, False), (True, False)):
            whole = {"nuslerp_flatten": flatten, "nuslerp_row_wise": by_row}
            yield Case("nuslerp", 2, base, of_models, whole)
    for density, normalize, rescale in SPARSE:
        whole = {"normalize": normalize, "rescale": rescale, "int8_mask": rescale}
        sparse = of_models | {"density": [density] * models}
        for method in ("ties", "dare_linear", "dare_ties"):
            yield Case(method, models, True, sparse, whole)
        gamma = 0.2 if models == 2 else 0.01
        for method in ("breadcrumbs", "breadcrumbs_ties"):
            yield Case(method, models, True, sparse | {"gamma": [gamma] * models}, whole)
        for method in ("della", "della_linear"):
            yield Case(method, models, True, sparse | {"epsilon": [0.05] * models}, whole)
    mixed = of_models | {"density": [0.3, 1.0, 0.7, 0.05][:models]}
    yield Case("ties", models, True, mixed, {"lambda": 1.5})


def make_inputs(shape: str, seed: int) -> Tensor:
    """A base and models near it, which are the base in one place of ten; [5, *shape]."""
    size = [int(part) for part in shape.split("x")]
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(size, generator=generator)
    models = []
    for _ in range(MODELS):
        delta = 0.05 * torch.randn(size, generator=generator)
        models.append(base + delta * (torch.rand(size, generator=generator) > 0.1))
    return torch.stack([base, *models])


def make(folder: Path, shapes: list[str]) -> None:
    """Merge by mergekit; a file with the inputs, one with the results of each method."""
    inputs = {shape: make_inputs(shape, seed) for seed, shape in enumerate(shapes)}
    _make(folder, inputs, lambda case: [merge_theirs(case, case.take(x)) for x in inputs.values()])


def llama(folder: Path) -> None:
    """The same on tiny Llamas, all tensors at once through mergekit's `merge_state_dicts`."""
    from mergekit.merge_methods import merge_state_dicts
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=300, num_attention_heads=4, num_key_value_heads=2, **size)
    shapes = {name: x.shape for name, x in LlamaForCausalLM(config).state_dict().items()}
    inputs = {
        name: make_inputs("x".join(map(str, shape)), seed)
        for seed, (name, shape) in enumerate(shapes.items())
    }

    def merge(case: Case) -> list[Tensor]:
        taken = [case.take(x) for x in inputs.values()]
        models = [dict(zip(inputs, tensors, strict=True)) for tensors in zip(*taken, strict=True)]
        values, base = {**case.whole, **case.of_models}, 0 if case.base else None
        return list(merge_state_dicts(models, case.method, parameters=values, base=base).values())

    _make(folder, inputs, merge)


def _make(folder: Path, inputs: dict[str, Tensor], merge: Callable[[Case], list[Tensor]]) -> None:
    """Write inputs, results of all cases and masks; `merge` makes one result for each input."""
    folder.mkdir(parents=True, exist_ok=True)
    notes = {"mergekit": version("mergekit"), "torch": torch.__version__}
    notes |= {"cpu": torch.backends.cpu.get_cpu_capability()}
    save_file(inputs, folder / INPUTS, notes)
    by_method: dict[str, list[Case]] = {}
    for case in cases():
        by_method.setdefault(case.method, []).append(case)
    for method, its_cases in by_method.items():
        results: dict[str, list[Tensor]] = {}
        for case in its_cases:
            drawn: list[Tensor] = []
            with _recorded(drawn):
                merged = merge(case)
            masks = iter(drawn)
            for name, result in zip(inputs, merged, strict=True):
                results.setdefault(f"{name}.results", []).append(result)
                results.setdefault(f"{name}.masks", []).extend(islice(masks, case.draws))
        stacked = {name: torch.stack(tensors) for name, tensors in results.items() if tensors}
        settings = json.dumps([asdict(case) for case in its_cases])
        save_file(stacked, folder / f"{method}.safetensors", notes | {"cases": settings})


def merge_theirs(case: Case, tensors: list[Tensor]) -> Tensor:
    """The merge by mergekit."""
    from mergekit.merge_methods import merge_tensors

    values, base = {**case.whole, **case.of_models}, 0 if case.base else None
    merged: Tensor = merge_tensors(tensors, case.method, parameters=values, base_index=base)
    return merged


@contextmanager
def _recorded(masks: list[Tensor]) -> Iterator[None]:
    """Keep the masks that mergekit draws."""
    bernoulli = torch.bernoulli

    def draw(*arguments: Any, **options: Any) -> Tensor:
        mask = bernoulli(*arguments, **options)
        masks.append(mask.bool().reshape(-1))
        return mask

    torch.bernoulli = draw
    try:
        yield
    finally:
        torch.bernoulli = bernoulli


def stored(
    folder: Path, method: str = "*"
) -> Iterator[tuple[Case, list[Tensor], Tensor, list[Tensor]]]:
    """Each case, its inputs, mergekit's result and the masks that it drew."""
    inputs = load_file(folder / INPUTS)
    for path in sorted(folder.glob(f"{method}.safetensors")):
        if path.name != INPUTS:
            results, its_cases = load_file(path), json.loads(about(path)["cases"])
            for shape in inputs:
                masks = iter(results.get(f"{shape}.masks", ()))
                for values, result in zip(its_cases, results[f"{shape}.results"], strict=True):
                    case = Case(**values)
                    yield case, case.take(inputs[shape]), result, list(islice(masks, case.draws))


def about(path: Path) -> dict[str, str]:
    """With which mergekit, torch and CPU results were made, and from which cases."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def merge_ours(case: Case, tensors: list[Tensor], masks: list[Tensor]) -> Tensor:
    """The same merge by edgepack, with the masks that mergekit drew."""
    from edgepack.merge import methods
    from edgepack.merge.methods.base import Job

    class Injected(Job):
        """Draws what mergekit drew: 0 is below any probability, 1 below none."""

        def random(self, model: int, block: slice) -> Tensor:
            return 1 - masks[model].flatten()[block].float()

    method = methods.get(case.method)
    job = (Injected if masks else Job)(
        "tensor",
        tensors[case.base :],
        tensors[0] if case.base else None,
        [
            method.complete({k: v[i] for k, v in case.of_models.items()}, of_model=True)
            for i in range(case.models)
        ],
        method.complete(case.whole, of_model=False),
    )
    return method.merge(job)


def compare(folder: Path) -> None:
    """A line for each method: how many cases, how many are equal bit by bit, how far others are."""
    print("made with", about(folder / INPUTS))
    lines: dict[str, list[tuple[bool, float]]] = {}
    for case, tensors, theirs, masks in stored(folder):
        ours = merge_ours(case, tensors, masks)
        error = 0.0 if tied(tensors, ours != theirs) else float((ours - theirs).abs().max())
        lines.setdefault(case.method, []).append((torch.equal(ours, theirs), error))
    print("| method | merges | equal bit by bit | largest difference |\n|---|---|---|---|")
    for method, pairs in lines.items():
        equal = sum(same for same, _ in pairs)
        print(f"| {method} | {len(pairs)} | {equal} | {max(error for _, error in pairs):.1e} |")


def tied(tensors: list[Tensor], differs: Tensor) -> bool:
    """Whether two elements differ, and a model changes both by the same magnitude: which of them is
    kept depends on the CPU in mergekit, whose sort is not stable. Not counted as a difference."""
    changes = [(tensor - tensors[0])[differs].abs() for tensor in tensors[1:]]
    return int(differs.sum()) == 2 and any(len(x.unique()) == 1 for x in changes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("make")
    command.add_argument("folder", type=Path)
    command.add_argument("--shapes", default=["6x16", "13"], type=lambda text: text.split(","))
    command.set_defaults(run=make)
    command = commands.add_parser("compare")
    command.add_argument("folder", type=Path)
    command.set_defaults(run=compare)
    command = commands.add_parser("llama")
    command.add_argument("folder", type=Path)
    command.set_defaults(run=llama)
    given = vars(parser.parse_args())
    given.pop("run")(**given)
