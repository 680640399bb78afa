"""The tokenizer of a merged model: the base's, an input's, or one with the tokens of all.

`merge_tokenizers` decides everything from vocabularies alone, before any weight is read: which
tokens the result has, and which row of each input belongs to them (`Rows`). `write` makes the
files.

Sources and rows are mergekit 0.1.5's. The union is not: mergekit adds the other inputs' tokens as
whole words that are cut out of a text first. So a piece like ``Ġce`` is never found, and ``ce`` is
found inside ``ace``. Here pieces are united with their merges or scores (`unite`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.checkpoint.tokenizer import from_folder
from edgepack.core.disk import atomic
from edgepack.core.untrusted import quote, shorten
from edgepack.errors import ExportError, RecipeError
from edgepack.merge import chat_templates
from edgepack.merge.copying import copy_tokenizer
from edgepack.merge.embeddings import Rows, TokenRule, plan_rows
from edgepack.merge.unite import unite
from edgepack.merge.vocabulary import Vocabulary, compare

UNION, BASE = "union", "base"
HINT = "write tokenizer_source: union (all tokens) or tokenizer_source: base (those of the base)"
TEMPLATE_FILES = ("chat_template*", "additional_chat_templates")


@dataclass(frozen=True)
class MergedTokenizer:
    """A tokenizer for the result. `origin` is the input whose files it is made of; `content` is its
    tokenizer.json, None where the files are taken as they are; `template` replaces the chat
    template, None where it stays."""

    origin: Vocabulary
    rows: Rows
    ids: Mapping[str, int]
    content: Mapping[str, Any] | None = None
    template: str | None = None
    warnings: tuple[str, ...] = ()

    def write(self, folder: Path, source: Path | None = None) -> None:
        """Write the tokenizer's files into `folder`. `source` is the folder of the origin, whose
        files are copied if nothing changes; a GGUF has none."""
        if source is not None and self.content is None:
            copy_tokenizer(source, folder)
        else:
            self.origin.tokenizer.save_pretrained(folder)
        if self.content is not None:
            _write_json(folder / "tokenizer.json", self.content)
            _update_config(folder, self.content)
        if self.template is not None:
            _write_template(folder, self.template)
        _check(folder, self.ids)


def merge_tokenizers(
    inputs: Sequence[Vocabulary],
    base: str | None = None,
    *,
    source: str | None = None,
    rules: Mapping[str, TokenRule] | None = None,
    pad_to_multiple_of: int | None = None,
    chat_template: str | None = None,
    outside: Vocabulary | None = None,
) -> MergedTokenizer:
    """The tokenizer of a merge of `inputs`, of which `base` is the base model's name.

    `source` is ``base``, ``union``, the name of an input or of `outside` (the vocabulary of a model
    that is not merged), or None: then the inputs must agree, and
    `RecipeError` lists the tokens in which they do not. `rules` are per token. The embedding has as
    many rows as the origin's, or more if there are more tokens, or as `pad_to_multiple_of` says.
    """
    origin = _origin(inputs if outside is None else [*inputs, outside], base, source)
    if source is None and not rules:
        _refuse_difference(origin, inputs)
    rules = rules or {}
    others = [v for v in inputs if v is not origin] if source == UNION else []
    named = {token: _flags(token, inputs) for token in rules if token not in origin.ids}
    united = unite(origin, others, named)
    count = _count(origin.rows, max(united.ids.values()) + 1, pad_to_multiple_of)
    rows = plan_rows(united.ids, count, inputs, base, rules)
    template, about_template = chat_templates.choose(chat_template, inputs, origin)
    return MergedTokenizer(
        origin,
        rows,
        united.ids,
        united.content,
        template,
        (*united.warnings, *_about_rows(origin, inputs, united.ids, rows), *about_template),
    )


def _origin(inputs: Sequence[Vocabulary], base: str | None, source: str | None) -> Vocabulary:
    """The input whose tokenizer is kept, or extended."""
    wanted = base if source in (None, BASE, UNION) else source
    if wanted is None:
        return inputs[0]
    for vocabulary in inputs:
        if vocabulary.model == wanted:
            return vocabulary
    raise RecipeError(
        f"tokenizer: {shorten(wanted, 80)} is not among the models of the merge",
        hint="models: " + shorten(", ".join(v.model for v in inputs), 150),
    )


def _refuse_difference(origin: Vocabulary, inputs: Sequence[Vocabulary]) -> None:
    """Raise if an input has other tokens: rows would be mixed with those of other tokens."""
    for other in inputs:
        if difference := compare(origin, other):
            count = len(difference)
            tokens = "1 token" if count == 1 else f"{count} tokens"
            raise RecipeError(f"the vocabularies differ in {tokens}: {difference}", hint=HINT)


def _count(rows: int, tokens: int, multiple: int | None) -> int:
    """Rows of the merged embedding. Padding of the origin is kept, unless a multiple is given."""
    if multiple is None:
        return max(rows, tokens)
    return -(-tokens // multiple) * multiple


def _flags(token: str, inputs: Sequence[Vocabulary]) -> Mapping[str, Any]:
    """The flags of a token that a rule adds: those that it has in an input."""
    return next((v.added[token] for v in inputs if token in v.added), {})


def _about_rows(
    origin: Vocabulary, inputs: Sequence[Vocabulary], ids: Mapping[str, int], rows: Rows
) -> list[str]:
    """Warnings about tokens of inputs that are lost, and tokens that no input has a row for."""
    warnings = []
    for other in inputs:
        lost = [token for token in other.ids if token not in ids]
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            warnings.append(
                f"tokenizer: {quote(shorten(lost[0], 30))}{more} of {shorten(other.model, 60)} "
                "cannot be in the result, whose tokenizer does not know it"
            )
    empty = [token for token, index in ids.items() if rows.filled[index]]
    if empty:
        warnings.append(
            f"tokenizer: no model has a row for {quote(shorten(empty[0], 30))}"
            + (f" and {len(empty) - 1} more" if len(empty) > 1 else "")
            + "; it gets the mean of all rows"
        )
    if origin.rows > rows.count:
        warnings.append(
            f"tokenizer: pad_to_multiple_of leaves {rows.count} rows of {origin.rows}; only "
            "padding is dropped"
        )
    return warnings


def _update_config(folder: Path, content: Mapping[str, Any]) -> None:
    """Add new tokens to the list of added tokens that old tokenizer_config.json files have."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] = {
            str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
            for entry in content["added_tokens"]
        }
        _write_json(path, config)


def _write_template(folder: Path, template: str) -> None:
    """Make `template` the only chat template."""
    for pattern in TEMPLATE_FILES:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if config.pop("chat_template", None) is not None:
        _write_json(path, config)
    with atomic(folder / "chat_template.jinja") as temporary:
        temporary.write_text(template, encoding="utf-8")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _check(folder: Path, ids: Mapping[str, int]) -> None:
    """Raise unless the files, read again, give every token the id that its row has."""
    found = from_folder(folder).get_vocab()
    for token, index in ids.items():
        if found.get(token) != index:
            raise ExportError(
                f"tokenizer: {quote(shorten(token, 40))} has id {found.get(token)} in the written "
                f"files, and row {index} in the weights",
                hint="write tokenizer_source: base, and report this with the two tokenizers",
            )
