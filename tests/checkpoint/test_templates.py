"""Chat templates of strangers: limited, and whatever goes wrong is one line."""

import json
import threading
import time

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from edgepack.calibration import self_text
from edgepack.checkpoint import special, templates
from edgepack.checkpoint.templates import TemplateError, choose, render
from edgepack.errors import EdgepackError
from tests.support.tiny import CHAT, make_tokenizer

MESSAGES = [
    {"role": "user", "content": "Wie geht's? 狐"},
    {"role": "assistant", "content": " gut ", "reasoning": "think"},
]

USUAL = {
    "chatml": CHAT,
    "tojson": "{{ messages | tojson(indent=2) }}{{ {'a': 'é<'} | tojson }}",
    "date": "{{ strftime_now('%Y') }}",
    "generation": "{% set x = 1 %}{% for m in messages %}{% generation %}{% set x = 2 %}"
    "{{ m.content | trim }}{% endgeneration %}{{ x }}{% endfor %}",
    "loop": "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m }}{% endfor %}",
    "namespace": "{% set n = namespace(i=0) %}{% set n.i = n.i + 1 %}{{ n.i }}{{ dict(a=1).a }}",
    "blocks": "  {% if tools is none %}\n  x\n  {% endif %}\n{{ documents is none }}\n",
    "names": "{{ bos_token }}|{{ eos_token }}|{{ nothing }}|{{ add_generation_prompt }}",
    "reasoning": "{{ messages[1].reasoning_content }}{{ messages[1].thinking }}",
}


@pytest.mark.parametrize("name", USUAL)
def test_templates_are_rendered_as_transformers_renders_them(name):
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    (expected,), _ = render_jinja_template(
        [MESSAGES], chat_template=USUAL[name], add_generation_prompt=True, **names
    )
    assert render(USUAL[name], MESSAGES, names, add_generation_prompt=True) == expected


FAULTS = {
    "{% if %}": "line 1",
    "{{ messages | sideways }}": "sideways",
    "{% for i in range(10 ** 11) %}y{% endfor %}": "Range too big",
    "{% macro again(x) %}{{ again(x) }}{% endmacro %}{{ again(0) }}": "calls itself",
    "{{ 7 % 0 }}": "modulo by zero",
    "{{ messages - 3 }}": "unsupported operand",
    "{{ cycler.__init__.__globals__ }}": "unsafe",
    "{% set n = namespace(__init__=1) %}": "__init__",
    "{{ 'ab' * 10 ** 11 }}": "memory",
    "{{ [0] * 10 ** 11 }}": "memory",
    "{% for i in range(90000) %}{{ 'z' * 90000 }}{% endfor %}": "writes more",
    "{{ messages[0].content.encode('ascii') }}": "ascii",
    "{{ '\ud800' }}": "surrogates",
    "{{ undefined_name.attribute }}": "undefined",
    "{{ raise_exception('first a system message\nplease') }}": "first a system message",
}


@pytest.mark.parametrize("template", FAULTS)
def test_what_templates_do_wrong_is_one_line(template):
    with pytest.raises(TemplateError, match=FAULTS[template]) as caught:
        render(template, MESSAGES, {})
    assert "chat template" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert caught.value.refused == ("raise_exception" in template)
    assert render("{{ messages[1].role }}", MESSAGES, {}) == "assistant"


LIMITS = {"SECONDS": (1, "more than 1 seconds"), "PATIENCE": (0.5, r"longer than 0\.5 seconds")}


@pytest.mark.slow
@pytest.mark.parametrize("limit", LIMITS)
def test_time_is_limited_and_the_next_template_is_rendered(monkeypatch, limit):
    """By the processor's time, and where a system does not know that, by the clock."""
    value, message = LIMITS[limit]
    monkeypatch.setattr(templates, limit, value)
    endless = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    start = time.monotonic()
    with pytest.raises(TemplateError, match=message):
        render(endless, MESSAGES, {})
    assert time.monotonic() - start < 40
    monkeypatch.undo()
    assert render("{{ messages | length }}", MESSAGES, {}) == "2"


def test_threads_get_their_own_answers():
    found = {}

    def draw(i):
        found[i] = [render("{{ messages[0].content }}", [{"content": str(i)}], {})] * 3

    threads = [threading.Thread(target=draw, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [str(i)] * 3 for i in range(20)}


@pytest.mark.parametrize(
    ("template", "chosen"),
    [
        (None, None),
        ("", None),
        ({}, None),
        ("x", "x"),
        ({"only": "x"}, "x"),
        ({"default": "x", "tool_use": "y"}, "x"),
    ],
)
def test_the_template_for_chats(template, chosen):
    assert choose(template) == chosen


@pytest.mark.parametrize("template", [7, ["x"], {"rag": "x", "tools": "y"}, {"default": 3}])
def test_there_is_no_template_for_chats(template):
    with pytest.raises(EdgepackError) as caught:
        choose(template)
    assert caught.value.hint
    if isinstance(template, dict) and len(template) > 1:
        assert "rag, tools" in str(caught.value)


STRICT = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (STRICT + CHAT, "no system"),
        (
            "{% for m in messages %}{{ m.content | replace('Q', '?') }}{% endfor %}",
            "changes",
        ),
        ("{{ messages[0].content }}", "leaves out"),
        ({"one": CHAT, "two": CHAT}, "one, two"),
        ("{% endfor %}", "line 1"),
    ],
)
def test_self_written_text_is_documents_where_the_template_cannot_be_used(template, reason):
    tokenizer = make_tokenizer()
    assert self_text.template_warnings(tokenizer) == []
    tokenizer.chat_template = template
    (warning,) = self_text.template_warnings(tokenizer)
    assert "documents only" in warning
    assert reason in warning
    assert self_text.chat_script(tokenizer) == [[]]
    assert special.ends(tokenizer) == (tokenizer.eos_token_id,)


def test_several_templates_keep_their_names_in_gguf_in_one_order(tmp_path):
    from tests.support.vocabularies import fields_of, from_gguf

    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"tool use": "t", "rag": "r", "default": CHAT}
    fields = fields_of(tokenizer)
    assert fields["tokenizer.chat_template"] == CHAT
    assert fields["tokenizer.chat_templates"] == ["rag", "tool_use"]
    again = from_gguf(fields, "x").chat_template
    assert again == {"default": CHAT, "rag": "r", "tool_use": "t"}
    tokenizer.chat_template = {"tool use": "t", "tool-use": "r"}
    with pytest.raises(EdgepackError, match="name of another"):
        fields_of(tokenizer)


def test_a_template_with_a_path_for_a_name_is_refused(tmp_path):
    """transformers would write a file of that name."""
    from edgepack.checkpoint.tokenizer import from_folder

    make_tokenizer().save_pretrained(tmp_path / "m")
    (tmp_path / "m/chat_template.jinja").unlink()
    path = tmp_path / "m/tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = [{"name": "../../out", "template": "x"}]
    path.write_text(json.dumps(config))
    with pytest.raises(EdgepackError, match="is called"):
        from_folder(tmp_path / "m")
