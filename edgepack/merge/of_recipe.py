"""The check of a merge as a recipe has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from edgepack.merge import methods
from edgepack.merge.check import Check, TokenizerOptions, check
from edgepack.merge.comparisons import Row, Slices
from edgepack.merge.embeddings import TokenRule
from edgepack.merge.facts import facts_from
from edgepack.merge.inputs import Input
from edgepack.merge.outside import Outside
from edgepack.merge.parameters import Scope, idle
from edgepack.recipe.merging import DTYPES, Merge, Token, TokenOf
from edgepack.recipe.references import Reference

Inputs = Mapping[Reference, Input]


def check_merge(merge: Merge, inputs: Inputs, outside: Outside | None = None) -> Check:
    """Compare the inputs of a merge. Its tokenizer is None where that of the base, or of the first
    model, stays as it is. `outside` is the model that `tokenizer_source` names, if it is no
    input."""
    dtype = merge.out_dtype or merge.dtype
    found = check(
        [facts_from(model) for model in inputs.values()],
        inputs[merge.base_model].name if merge.base_model else None,
        slices=_slices(merge, inputs),
        options=tokenizer_options(merge, inputs, outside),
        out_dtype=None if dtype is None else DTYPES[dtype],
    )
    remark = idle(methods.get(merge.merge_method), scopes_of(merge))
    if remark is None:
        return found
    row = Row("parameters", ("",) * len(inputs), "warning", remark)
    return replace(found, rows=(*found.rows, row))


def scopes_of(merge: Merge) -> Iterator[Scope]:
    """All parameters of a recipe."""
    yield "parameters", merge.parameters
    for part in (*(merge.models or ()), *(merge.slices or ())):
        yield "models or slices", part.parameters
    for output in merge.slices or ():
        for source in output.sources:
            yield "sources", source.parameters


def tokenizer_options(
    merge: Merge, inputs: Inputs, outside: Outside | None = None
) -> TokenizerOptions:
    """What the recipe says about the tokenizer, with the inputs' names."""
    given, source = merge.tokenizer, merge.tokenizer_source
    tokens: Mapping[str, Token] = {}
    multiple = None
    if given is not None:
        source, tokens, multiple = given.source, given.tokens, given.pad_to_multiple_of
    if outside is not None:
        source = outside.name
    return TokenizerOptions(
        _name(source, inputs) if isinstance(source, Reference) else source,
        {token: _rule(rule, inputs) for token, rule in tokens.items()},
        multiple,
        merge.chat_template,
        None if outside is None else outside.vocabulary,
    )


def _rule(token: Token, inputs: Inputs) -> TokenRule:
    source = token.source
    if isinstance(source, TokenOf) and source.model is None:
        return TokenRule(zero=True, force=token.force)
    if isinstance(source, TokenOf) and source.model is not None:
        name = _name(source.model, inputs)
        return TokenRule(name, source.token, source.token_id, force=token.force)
    model = _name(source, inputs) if isinstance(source, Reference) else None
    return TokenRule(model, force=token.force)


def _name(reference: Reference, inputs: Inputs) -> str:
    """The input's name; the check refuses a reference that is none of the inputs."""
    return inputs[reference].name if reference in inputs else str(reference)


def _slices(merge: Merge, inputs: Inputs) -> Slices | None:
    if merge.slices is None:
        return None
    return [[(inputs[s.model].name, s.layers) for s in part.sources] for part in merge.slices]
