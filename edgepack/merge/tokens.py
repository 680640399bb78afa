"""What a recipe says of the tokenizer, handed to `edgepack.merge.tokenizers`."""

from __future__ import annotations

from collections.abc import Mapping

from edgepack.checkpoint.digests import sha256
from edgepack.errors import CheckpointError
from edgepack.merge.embeddings import TokenRule
from edgepack.merge.inputs import Input
from edgepack.merge.tokenizers import MergedTokenizer, merge_tokenizers
from edgepack.merge.vocabulary import Vocabulary
from edgepack.recipe.merging import Merge, Token, TokenOf
from edgepack.recipe.references import Reference

FILE = "tokenizer.json"


def plan_tokenizer(merge: Merge, inputs: Mapping[Reference, Input]) -> MergedTokenizer | None:
    """The tokenizer of the result; None where it is the donor's as it is. `RecipeError` lists
    tokens in which the models differ, if the recipe does not say what to do."""
    options, source = merge.tokenizer, merge.tokenizer_source
    if options is not None:
        source = options.source
    plain = options is None and source is None and merge.chat_template is None
    models = list(inputs.values())
    if plain and (_same_files(models) or any(model.checkpoint is None for model in models)):
        return None
    vocabularies = [_vocabulary(model) for model in models]
    base = inputs[merge.base_model].name if merge.base_model else None
    tokens = {} if options is None else options.tokens
    return merge_tokenizers(
        vocabularies,
        base,
        source=inputs[source].name if isinstance(source, Reference) else source,
        rules={token: _rule(rule, inputs) for token, rule in tokens.items()},
        pad_to_multiple_of=None if options is None else options.pad_to_multiple_of,
        chat_template=merge.chat_template,
    )


def _same_files(models: list[Input]) -> bool:
    """Whether all have the same tokenizer.json, and embeddings with as many rows."""
    paths = [model.folder / FILE if model.folder else None for model in models]
    if any(path is None or not path.is_file() for path in paths):
        return len(models) == 1
    digests = {sha256(path) for path in paths if path is not None}
    return len(digests) == 1 and len({_rows(model) for model in models}) == 1


def _rows(model: Input) -> int:
    """Rows of the embedding; 0 where its family is not known."""
    if model.architecture is None:
        return 0
    return model.tensors[model.architecture.outside["token_embd"]].shape[0]


def _vocabulary(model: Input) -> Vocabulary:
    if model.checkpoint is None:
        raise CheckpointError(
            f"{model.name}: is of a family that edgepack does not know, so its embeddings cannot "
            "be put into another order",
            hint="leave out tokenizer, tokenizer_source and chat_template",
        )
    return Vocabulary(model.name, model.checkpoint.tokenizer, _rows(model))


def _rule(token: Token, inputs: Mapping[Reference, Input]) -> TokenRule:
    source = token.source
    if isinstance(source, TokenOf):
        if source.model is None:
            return TokenRule(zero=True, force=token.force)
        name = _name(source.model, inputs)
        return TokenRule(name, source.token, source.token_id, force=token.force)
    if isinstance(source, Reference):
        return TokenRule(_name(source, inputs), force=token.force)
    return TokenRule(force=token.force)


def _name(reference: Reference, inputs: Mapping[Reference, Input]) -> str:
    return inputs[reference].name if reference in inputs else str(reference)
