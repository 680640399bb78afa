"""config.json as transformers completes it: defaults of the family, old keys in their new form.

A multimodal repository's configuration holds that of its language model as ``text_config``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.architectures.base import Architecture
from edgepack.core import plugins
from edgepack.core.untrusted import quote, shorten
from edgepack.errors import CheckpointError

HINT = "take the config.json published with the model"
TEXT = "text_config"
OUTSIDE = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "dtype")
"""Keys of a multimodal configuration that speak of the language model, unless its own does."""
CLASSES = ("architectures", "auto_map")
"""Keys that say which code computes a model; transformers drops them."""
MOST_BLOCKS = 100_000


def wrappers() -> dict[str, Architecture]:
    """Model types of multimodal repositories → the family of their language model."""
    found: dict[str, Architecture] = {}
    for name in plugins.names("architectures"):
        family: Architecture = plugins.find("architectures", name)
        found |= dict.fromkeys(family.wrapper, family)
    return found


def is_wrapped(content: Mapping[str, Any]) -> bool:
    """Whether a configuration is that of a multimodal repository."""
    kind = content.get("model_type")
    return isinstance(kind, str) and kind in wrappers()


def text_config(content: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The configuration of the language model: `content` itself, or its ``text_config``."""
    kind = content.get("model_type")
    family = wrappers().get(kind) if isinstance(kind, str) else None
    if family is None:
        return dict(content)
    inner = content.get(TEXT)
    if not isinstance(inner, dict):
        raise CheckpointError(
            f"{place}: config.json: {TEXT} should be a mapping, not {quote(inner)}", hint=HINT
        )
    own = inner.get("model_type", family.name)
    if own != family.name:
        raise CheckpointError(
            f"{place}: {TEXT}.model_type {quote(own)} is not supported in a {quote(kind)} model",
            hint=f"edgepack reads {family.name} there",
        )
    outer = {key: content[key] for key in OUTSIDE if key in content}
    return {**outer, **inner, "model_type": family.name}


def complete(content: Mapping[str, Any], family: Architecture, place: str) -> dict[str, Any]:
    """`content` with the defaults of transformers' class, if the family is read like that."""
    if not family.completed:
        return dict(content)
    from transformers import CONFIG_MAPPING  # a second to import

    blocks = content.get("num_hidden_layers", 0)
    if type(blocks) is not int or not 0 <= blocks <= MOST_BLOCKS:
        raise CheckpointError(
            f"{place}: config.json: num_hidden_layers should be a number of blocks, not "
            f"{quote(blocks)}",
            hint=HINT,
        )
    given = {key: _plain(value) for key, value in content.items() if key != "auto_map"}
    try:
        found: dict[str, Any] = CONFIG_MAPPING[family.name](**given).to_dict()
    except Exception as error:  # whatever a class raises about values that it did not expect
        what = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{place}: config.json: {shorten(what, 160)}", hint=HINT) from error
    return {
        **found,
        **{key: content[key] for key in CLASSES if key in content},
        **_adjusted(found),
    }


def _adjusted(content: Mapping[str, Any]) -> dict[str, Any]:
    """LFM2's inner width as it is computed from the one that is written: two thirds of it, times a
    factor, up to a multiple (as in ``Lfm2MLP`` of transformers)."""
    key, factor = "block_auto_adjust_ff_dim", content.get("block_ffn_dim_multiplier")
    step = content.get("block_multiple_of")
    if not content.get(key) or not isinstance(step, int) or step < 1:
        return {}
    width = int(2 * content["intermediate_size"] / 3)
    width = width if factor is None else int(factor * width)
    return {"intermediate_size": -(-width // step) * step, key: False}


def _plain(value: Any) -> Any:
    """A value of a JSON file in which transformers 5 wrote infinity as a mapping."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and set(value) == {"__float__"}:
        return float(str(value["__float__"]))
    return value
