"""The process that renders chat templates: a separate script, which `templates` runs.

A template is written by the model's authors. Jinja's sandbox keeps it from files and from Python's
internals, but limits neither time nor memory. So templates run in this process, which has limits
and may be killed. It reads requests from stdin and answers on stdout, one JSON object a line.

The environment is transformers' (``utils/chat_template_utils.py``), which this script does not
import because that would take seconds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys under which a message's reasoning is passed; templates read the first."""


class Generation(Extension):
    """``{% generation %}`` marks an answer for training; its content is rendered unchanged."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """A call that returns the text between the tags; names set there are local."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_content")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


class Namespace(jinja2.utils.Namespace):
    """Jinja's namespace, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be one of its names
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot store {name!r}")


class Dict:
    """``dict`` without the attributes that lead out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """``dict.fromkeys``."""
        return dict.fromkeys(*args)


def _raise_exception(message: Any) -> None:
    raise jinja2.exceptions.TemplateError(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        dict=Dict(),
        namespace=Namespace,
    )
    return environment.from_string(template)


def _with_reasoning(message: Any) -> Any:
    """The message with its reasoning under all keys that templates read."""
    if not isinstance(message, dict):
        return message
    found = next((message[k] for k in REASONING if message.get(k) is not None), None)
    if found is None:
        return message
    return {"thinking": found, **message, "reasoning_content": found}


def render(request: Mapping[str, Any]) -> dict[str, Any]:
    """``text``, or ``error`` (the message) and ``refused`` (the template raised it on purpose)."""
    try:
        template = _compiled(request["template"])
        messages = [_with_reasoning(message) for message in request["messages"]]
        parts, size = [], 0
        for part in template.generate(
            messages=messages, tools=None, documents=None, **request["names"]
        ):
            parts.append(part)
            size += len(part)
            if size > request["limit"]:
                return {"error": f"it writes more than {request['limit']} characters"}
        text = "".join(parts)
        text.encode()
        return {"text": text}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}"}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except RecursionError:
        return {"error": "it calls itself without end"}
    except Exception as error:  # a template may raise anything
        refused = type(error) is jinja2.TemplateError
        return {"error": str(error)[:1000] or type(error).__name__, "refused": refused}


def _limit(resource: Any, kind: str, soft: int) -> None:
    """Lower a limit of this process; some systems do not have all of them."""
    with suppress(AttributeError, ValueError, OSError):
        number = getattr(resource, kind)
        _, hard = resource.getrlimit(number)
        resource.setrlimit(number, (soft, hard))


def _limits() -> Callable[[float], None]:
    """Limit memory and files. The returned function limits the time of one request; after it, the
    system ends this process."""
    try:
        import resource
    except ImportError:  # Windows
        return lambda seconds: None
    _limit(resource, "RLIMIT_CORE", 0)
    _limit(resource, "RLIMIT_FSIZE", 0)
    _limit(resource, "RLIMIT_AS", MEMORY)
    return lambda seconds: _limit(resource, "RLIMIT_CPU", int(time.process_time() + seconds) + 1)


MEMORY = 1 << 30
"""Bytes of address space."""


def main() -> None:
    """Answer requests until stdin ends."""
    limit_time = _limits()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        limit_time(request["seconds"])
        try:
            answer = json.dumps(render(request))
        except MemoryError:
            answer = json.dumps({"error": "it needs too much memory"})
        sys.stdout.buffer.write(answer.encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
