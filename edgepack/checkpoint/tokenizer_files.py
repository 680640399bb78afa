"""The tokenizer of a Hugging Face folder, from files that are not trusted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.checkpoint import sentencepiece_model
from edgepack.core.untrusted import quote, read_json, shorten
from edgepack.errors import CheckpointError, EdgepackError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

JSON_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "chat_template.json",
    "tekken.json",
)
TEKKEN = "tekken.json"
TEKKEN_NAMES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}
TEMPLATE_NAME = re.compile(r"[\w.-]{1,100}")
"""Valid names of chat templates, which become names of files."""
MAX_ID = (1 << 31) - 1
MAX_DEPTH = 20
CODE_HINT = "edgepack runs no code that comes with a model; the folder needs a tokenizer.json"
HINT = (
    "the folder needs a valid tokenizer.json, tekken.json or tokenizer.model (pip install protobuf)"
)


def from_folder(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a Hugging Face folder.

    ``tokenizer.json`` is loaded as it is. AutoTokenizer would rebuild the pre-tokenizer from the
    class in the configuration, and so lose SmolLM2's splitting of digits. Without it Mistral's
    ``tekken.json`` or sentencepiece's ``tokenizer.model`` is read, or what AutoTokenizer can read.
    """
    from transformers import PreTrainedTokenizerFast

    _check_json(folder)
    try:
        tokenizer = _load(folder)
        if isinstance(tokenizer, PreTrainedTokenizerFast):
            _try_out(tokenizer)
    except EdgepackError as error:
        raise CheckpointError(f"{folder.name}: {error}", hint=error.hint or HINT) from error
    except BaseException as error:  # transformers passes on anything that its converters raise
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # Ctrl-C; a panic in tokenizers is no Exception either
        own_code = "trust_remote_code" in str(error)
        reason = "it needs code that comes with the model" if own_code else _first_line(error)
        raise CheckpointError(
            f"{folder.name}: the tokenizer cannot be loaded ({reason})",
            hint=CODE_HINT if own_code else HINT,
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(
            f"{folder.name}: {type(tokenizer).__name__} is not a fast tokenizer",
            hint="the folder needs a tokenizer.json",
        )
    return tokenizer


def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    exact = (folder / "tokenizer.json").is_file()
    if not exact and (folder / TEKKEN).is_file():
        return _from_tekken(folder)
    if not exact and (folder / sentencepiece_model.MODEL).is_file():
        found = sentencepiece_model.from_model(folder)
        if found is not None:
            return found
    loader: Any = PreTrainedTokenizerFast if exact else AutoTokenizer
    return loader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _from_tekken(folder: Path) -> PreTrainedTokenizerFast:
    """Mistral's tokenizer, with BOS before every text as in mistral-common."""
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.mistral.tokenizer import MistralConverter

    backend = MistralConverter(str(folder / TEKKEN)).converted()
    template = folder / "chat_template.jinja"
    known = backend.get_vocab()
    wrap: Any = PreTrainedTokenizerFast  # an untyped class
    tokenizer: PreTrainedTokenizerFast = wrap(
        tokenizer_object=backend,
        add_bos_token=TEKKEN_NAMES["bos_token"] in known,
        clean_up_tokenization_spaces=False,
        chat_template=template.read_text(encoding="utf-8") if template.is_file() else None,
        **{name: token for name, token in TEKKEN_NAMES.items() if token in known},
    )
    return tokenizer


def _check_json(folder: Path) -> None:
    """Check that every JSON file is an object of sensible size."""
    for name in JSON_FILES:
        path = folder / name
        if not path.exists():
            continue
        place = f"{folder.name}/{name}"
        try:
            content = read_json(path, CheckpointError, place=place)
        except OSError as error:
            raise CheckpointError(
                f"{place}: cannot be read ({error.strerror})", hint="fetch it again"
            ) from error
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{place}: should be a JSON object, not {quote(content)}",
                hint="take the file published with the model",
            )
        if name == TEKKEN:
            _check_pieces(content.get("vocab"), place)
        if name == "tokenizer.json":
            _check_post_processor(content.get("post_processor"), place)


def _check_pieces(vocab: Any, place: str) -> None:
    """Check that pieces are short: merges are found by cutting them everywhere."""
    longest = 2 * sentencepiece_model.MAX_PIECE  # in base64
    for piece in vocab if isinstance(vocab, list) else ():
        spelled = piece.get("token_bytes") if isinstance(piece, dict) else None
        if not isinstance(spelled, str) or len(spelled) > longest:
            raise CheckpointError(
                f"{place}: a piece of the vocabulary is {quote(shorten(str(piece), 60))}",
                hint="take the file published with the model",
            )


def _check_post_processor(step: Any, place: str, depth: int = 0) -> None:
    """Check that a template names only tokens that it defines: tokenizers panics at others."""
    if not isinstance(step, dict) or depth > MAX_DEPTH:
        return
    inner = step.get("processors")
    for each in inner if isinstance(inner, list) else ():
        _check_post_processor(each, place, depth + 1)
    known = step.get("special_tokens")
    known = known if isinstance(known, dict) else {}
    for form in ("single", "pair"):
        pieces = step.get(form)
        for piece in pieces if isinstance(pieces, list) else ():
            token = piece.get("SpecialToken") if isinstance(piece, dict) else None
            name = token.get("id") if isinstance(token, dict) else None
            if isinstance(name, str) and name not in known:
                raise CheckpointError(
                    f"{place}: the post_processor names {quote(shorten(name, 60))} and does not "
                    "define it",
                    hint=HINT,
                )


def _try_out(tokenizer: PreTrainedTokenizerFast) -> None:
    """Call the methods that the rest of edgepack uses, so that a broken tokenizer fails here."""
    ids = tokenizer.get_vocab().values()
    if not ids or min(ids) < 0 or max(ids) > MAX_ID:
        raise CheckpointError("the tokenizer has no tokens, or ids that are no 31-bit numbers")
    for name in ("bos", "eos", "unk", "sep", "pad", "mask"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None and not isinstance(index, int):
            raise CheckpointError(f"{name}_token is no token but {quote(index)}")
    tokenizer.encode("a b\n")
    tokenizer.backend_tokenizer.to_str()
    _ = tokenizer.added_tokens_decoder, tokenizer.all_special_ids
    templates = tokenizer.chat_template
    for name in templates if isinstance(templates, dict) else ():
        if not isinstance(name, str) or not TEMPLATE_NAME.fullmatch(name):
            raise CheckpointError(
                f"a chat template is called {quote(name)}",
                hint="names are letters, digits, dots, hyphens and underscores",
            )


def _first_line(error: BaseException) -> str:
    return shorten((str(error).strip() or type(error).__name__).splitlines()[0], 150)
