"""Chat templates of merged models: an input's own, the most common one, or a preset.

The presets write the markers that their families were trained with, and nothing else: no system
prompt is made up, no tools are described. Markers are from the models' documentation: ChatML
(OpenAI), Llama 3's and Mistral's prompt formats, EXAONE 3's model card, Alpaca's repository.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from edgepack.checkpoint.templates import TemplateError
from edgepack.checkpoint.templates import choose as default_of
from edgepack.core.untrusted import quote, shorten
from edgepack.errors import RecipeError
from edgepack.merge.vocabulary import Vocabulary

AUTO = "auto"

_ALPACA = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{ message['content'] }}

{% elif message['role'] == 'user' -%}
### Instruction:
{{ message['content'] }}

{% elif message['role'] == 'assistant' -%}
### Response:
{{ message['content'] }}{{ eos_token }}

{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
### Response:
{% endif -%}
"""

_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""

_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif -%}
"""

_MISTRAL = """\
{{- bos_token -}}
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set ns.system = message['content'] + '\\n\\n' -%}
{%- elif message['role'] == 'user' -%}
{{ '[INST] ' + ns.system + message['content'] + ' [/INST]' }}
{%- set ns.system = '' -%}
{%- else -%}
{{ ' ' + message['content'] + eos_token }}
{%- endif -%}
{%- endfor -%}
"""

_EXAONE = """\
{%- for message in messages -%}
{{ '[|' + message['role'] + '|]' + message['content'] }}
{%- if message['role'] == 'user' -%}
{{ '\\n' }}
{%- else -%}
{{ '[|endofturn|]\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '[|assistant|]' }}
{%- endif -%}
"""

PRESETS: Mapping[str, str] = MappingProxyType(
    {
        "alpaca": _ALPACA,
        "chatml": _CHATML,
        "exaone": _EXAONE,
        "llama3": _LLAMA3,
        "mistral": _MISTRAL,
    }
)
MARKERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "alpaca": (),
        "chatml": ("<|im_start|>", "<|im_end|>"),
        "exaone": ("[|user|]", "[|assistant|]", "[|endofturn|]"),
        "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "mistral": ("[INST]", "[/INST]"),
    }
)
"""Tokens that the models of a preset were trained with."""


def choose(
    option: str | None, inputs: Sequence[Vocabulary], origin: Vocabulary
) -> tuple[str | None, list[str]]:
    """The template of the result, None for that of the `origin`; and warnings.

    `option` is None, ``auto`` (the most common one among the inputs, the first of several), a name
    of `PRESETS`, or a template. `RecipeError` for a word that is neither.
    """
    templates = {v.model: template_of(v) for v in inputs}
    own = template_of(origin)
    if option is None:
        return None, _difference(templates, own, origin.model)
    if option == AUTO:
        counts = Counter(text for text in templates.values() if text is not None)
        if not counts:
            return None, ["chat_template: auto, and no model has a template"]
        common = counts.most_common(1)[0][0]
        return (None if common == own else common), []
    if option in PRESETS:
        missing = [token for token in MARKERS[option] if token not in origin.ids]
        return PRESETS[option], [_untrained(option, missing)] if missing else []
    if "{" not in option:
        raise RecipeError(
            f"chat_template: {quote(shorten(option, 40))} is no template",
            hint=f"write {AUTO}, {', '.join(PRESETS)}, or a Jinja template",
        )
    return option, []


def template_of(vocabulary: Vocabulary) -> str | None:
    """The template for chats that a tokenizer comes with; None if none or several without a
    default."""
    try:
        return default_of(vocabulary.tokenizer.chat_template)
    except TemplateError:
        return None


def _difference(templates: Mapping[str, str | None], own: str | None, origin: str) -> list[str]:
    others = [name for name, text in templates.items() if text != own]
    if not others:
        return []
    names = shorten(", ".join(others), 100)
    return [
        f"chat_template: {names} and {shorten(origin, 60)} have different ones; that of "
        f"{shorten(origin, 60)} is kept"
    ]


def _untrained(option: str, missing: Sequence[str]) -> str:
    names = ", ".join(missing)
    return f"chat_template: {option} writes {names}, and the tokenizer has no such tokens"
