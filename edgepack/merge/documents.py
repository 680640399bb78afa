"""Merges that use one another's results: which comes first, and every model opened once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from edgepack.core.plugins import suggest
from edgepack.core.untrusted import quote, shorten
from edgepack.errors import RecipeError
from edgepack.merge import methods
from edgepack.merge.check import Check
from edgepack.merge.checkpoint import MergedCheckpoint
from edgepack.merge.fisher.plan import make_fisher
from edgepack.merge.inputs import Input, open_input
from edgepack.merge.layout import make_layout
from edgepack.merge.of_recipe import check_merge, scopes_of
from edgepack.merge.outside import KEY, Outside, open_outside
from edgepack.merge.parameters import unused_filters
from edgepack.merge.stage import Merge, Options, stages_of
from edgepack.recipe import merging
from edgepack.recipe.references import Reference
from edgepack.recipe.sections import Recipe

TITLE = "merge"
"""What a result without a name is called."""


def plan_merges(
    merges: Sequence[merging.Merge], base: Path, options: Options, title: str = TITLE
) -> Merge:
    """The last stage of a file of merges; it holds the earlier ones as its inputs.

    The last is the one without a name, or else the one that no other uses. Headers are read, and
    models are hashed. Raises `RecipeError` for names that are missing or lead in a circle.
    """
    known: dict[str, Merge] = {}
    last = None
    for merge, inputs, outside in _with_inputs(merges, base, known):
        found = check_merge(merge, inputs, outside)
        last = make_stage(merge, inputs, options, merge.name or title, base, found, outside)
        if merge.name is not None:
            known[merge.name] = last
    assert last is not None
    with ThreadPoolExecutor() as pool:  # digests of large files, side by side
        models = {model for stage in stages_of(last) for model in stage.layout.inputs}
        list(pool.map(lambda model: model.key, models))
    return last


def check_merges(
    merges: Sequence[merging.Merge], base: Path, title: str = TITLE
) -> list[tuple[str, Check]]:
    """The check of every merge of a file, with its name, up to the first that has errors: those
    that use its result cannot be checked. No weights are read."""
    known: dict[str, Merge] = {}
    checks = []
    for merge, inputs, outside in _with_inputs(merges, base, known):
        found = check_merge(merge, inputs, outside)
        if not found.errors:
            name = merge.name or title
            stage = make_stage(merge, inputs, Options(), name, base, found, outside)
            found = found.with_memory(stage.memory())
            if merge.name is not None:
                known[merge.name] = stage
        checks.append((merge.name or title, found))
        if found.errors:
            break
    return checks


def _with_inputs(
    merges: Sequence[merging.Merge], base: Path, known: Mapping[str, Merge]
) -> Iterator[tuple[merging.Merge, dict[Reference, Input], Outside | None]]:
    """Every merge in order with its models, each of which is opened once, and the model that gives
    the tokenizer only. `known` has the stages of earlier merges when a later one is asked for."""
    opened: dict[Reference, Input] = {}
    for merge in in_order(merges):
        inputs = {}
        for reference in merge.references():
            found = known.get(reference.model)
            if found is not None:
                if reference.lora is not None:
                    raise RecipeError(
                        f"{reference}: a merge's result takes no adapter here",
                        hint="add the adapter to a model of that merge",
                    )
                inputs[reference] = Input(reference, reference.model, found.checkpoint)
            else:
                inputs[reference] = opened.get(reference) or open_input(reference, base)
                opened[reference] = inputs[reference]
        own = _with_own_names(inputs)
        yield merge, own, _outside(merge, own, base, known)


def _outside(
    merge: merging.Merge,
    inputs: Mapping[Reference, Input],
    base: Path,
    known: Mapping[str, Merge],
) -> Outside | None:
    """The model that `tokenizer_source` names, unless it is merged."""
    reference = merge.tokenizer_model
    if reference is None or reference in inputs:
        return None
    if reference.model in known:
        raise RecipeError(
            f"{KEY}: {quote(reference.model)} is another merge, and no model of this one",
            hint="name the model that has its tokenizer",
        )
    return open_outside(reference, base, {model.name for model in inputs.values()})


def open_merge(recipe: Recipe, base: Path) -> MergedCheckpoint:
    """The model that the section `merge` of a recipe makes."""
    merge = recipe.merge
    assert merge is not None
    several = merge if isinstance(merge, list) else [merge]
    return plan_merges(several, base, Options(), recipe.export.name or TITLE).checkpoint


def make_stage(
    merge: merging.Merge,
    inputs: dict[Reference, Input],
    options: Options,
    title: str,
    base: Path,
    found: Check,
    outside: Outside | None = None,
) -> Merge:
    """One merge of models that are open. `base` is the recipe's folder, `found` the merge's check,
    `outside` the model that gives the tokenizer only."""
    method = methods.get(merge.merge_method)
    found.require()
    donor = inputs[merge.base_model] if merge.base_model else next(iter(inputs.values()))
    rows = None if found.tokenizer is None else found.tokenizer.rows.count
    layout = make_layout(merge, inputs, method, rows)
    fisher, notes = None, list(found.warnings)
    tensors = [tensor.name for tensor in layout.tensors]
    notes += [
        f"parameters: no tensor's name has {quote(word)}, so that this filter counts for none"
        for word in unused_filters(scopes_of(merge), tensors)
    ]
    if merge.weighted is not None:
        fisher, more = make_fisher(merge, inputs, layout, base)
        notes += more
    return Merge(
        title, merge, layout, method, donor, found.tokenizer, options, tuple(notes), fisher, outside
    )


def in_order(merges: Sequence[merging.Merge]) -> list[merging.Merge]:
    """The merges, each after those that it uses, the last one at the end."""
    named = {}
    for merge in merges:
        if merge.name is not None:
            if merge.name in named:
                raise RecipeError(
                    f"name: two merges are called {quote(merge.name)}", hint="give each its own"
                )
            named[merge.name] = merge
    final = [merge for merge in merges if merge.name is None]
    if len(final) > 1:
        raise RecipeError(
            "name: two merges have none", hint="one only may be without: it is the result"
        )
    used = {reference.model for merge in merges for reference in merge.references()}
    ends = final or [merge for name, merge in named.items() if name not in used]
    order: list[merging.Merge] = []
    for end in ends or merges:
        _visit(end, named, [], order)
    if len(ends) > 1:
        names = ", ".join(quote(str(merge.name)) for merge in ends)
        raise RecipeError(
            f"name: which merge is the result? No other uses {shorten(names, 100)}",
            hint="leave out the name of the last one",
        )
    unused = [merge.name for merge in merges if merge not in order]
    if unused:
        raise RecipeError(
            f"name: nothing uses the merge {quote(unused[0])}",
            hint=suggest(str(unused[0]), tuple(sorted(used))),
        )
    return order


def _visit(
    merge: merging.Merge,
    named: dict[str, merging.Merge],
    above: list[merging.Merge],
    order: list[merging.Merge],
) -> None:
    """Put a merge into the order, after all that it uses; `above` is what uses it."""
    if merge in order:
        return
    if merge in above:
        circle = [str(one.name) for one in above[above.index(merge) :]]
        raise RecipeError(
            f"merge: {shorten(' → '.join([*circle, circle[0]]), 150)}: leads in a circle",
            hint="a merge cannot use its own result",
        )
    for reference in merge.references():
        if reference.model in named:
            _visit(named[reference.model], named, [*above, merge], order)
    order.append(merge)


def _with_own_names(inputs: dict[Reference, Input]) -> dict[Reference, Input]:
    """Inputs with names that differ: folders of one name in two places are numbered."""
    seen: dict[str, int] = {}
    found = {}
    for reference, model in inputs.items():
        number = seen[model.name] = seen.get(model.name, 0) + 1
        name = model.name if number == 1 else f"{model.name}-{number}"
        found[reference] = replace(model, name=name)
    return found
