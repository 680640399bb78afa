"""Chat templates: messages as the text that a model was trained on.

A template is a program by the model's authors. It is rendered in a separate process
(`_template_child`) with limits of time and memory; any failure becomes an error of one line.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgepack.core.untrusted import quote, shorten
from edgepack.errors import EdgepackError

SECONDS = 5
"""Most processor time of one rendering; real templates take a millisecond."""
PATIENCE = 60.0
"""Most wall-clock seconds, for systems that cannot limit processor time. Much longer, so that no
result depends on the machine's other load."""
MAX_CHARACTERS = 32 << 20
"""Most characters that a template may write."""
DEFAULT = "default"

Message = Mapping[str, Any]


class TemplateError(EdgepackError):
    """A chat template cannot be rendered; `refused` if it raised an exception on purpose."""

    def __init__(self, message: str, *, hint: str | None = None, refused: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.refused = refused


def choose(template: Any) -> str | None:
    """The template that chats are rendered with; None if there is none.

    A model may have several by name. The one for chats is called ``default``, or is the only one.
    """
    if isinstance(template, Mapping):
        if len(template) > 1 and DEFAULT not in template:
            raise TemplateError(
                f"the model has {len(template)} chat templates and none of them is the default: "
                + shorten(", ".join(sorted(map(str, template))), 150),
                hint="name the one for chats `default` in the model's tokenizer_config.json",
            )
        template = template.get(DEFAULT, next(iter(template.values()), None))
    if template is None or template == "":
        return None
    if not isinstance(template, str):
        raise TemplateError(
            f"the chat template is no text but {quote(template)}",
            hint="take the tokenizer_config.json published with the model",
        )
    return template


def render(
    template: Any,
    messages: Sequence[Message],
    names: Mapping[str, str],
    *,
    add_generation_prompt: bool = False,
) -> str:
    """Messages in a chat template, rendered as in transformers; `names` are the variables that it
    reads, including the texts of special tokens."""
    chosen = choose(template)
    if chosen is None:
        raise TemplateError("the model has no chat template", hint="it is not made for chat")
    request = {
        "template": chosen,
        "messages": [dict(message) for message in messages],
        "names": {**names, "add_generation_prompt": add_generation_prompt},
        "seconds": SECONDS,
        "limit": MAX_CHARACTERS,
    }
    answer = _child.ask(request)
    if "text" in answer:
        return str(answer["text"])
    what, refused = shorten(str(answer["error"]).strip().partition("\n")[0]), "refused" in answer
    if refused and answer["refused"]:
        message = f"the chat template refuses the messages: {what}"
        raise TemplateError(message, hint="send what it asks for", refused=True)
    raise TemplateError(
        f"the chat template cannot be rendered: {what}",
        hint="take the chat template published with the model",
    )


class _Child:
    """The process that renders; started at the first rendering, and again after it was killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer, up to the time limits."""
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            process = self._started()
            timed_out = threading.Event()

            def stop() -> None:
                timed_out.set()
                process.kill()

            timer = threading.Timer(PATIENCE, stop)
            timer.daemon = True
            timer.start()
            try:
                answer = self._exchange(process, line)
            except BaseException:  # Ctrl-C: a late answer must not be taken for the next one
                self.close()
                raise
            finally:
                timer.cancel()
            if answer is not None and not timed_out.is_set():
                return answer
            self.close()
        if timed_out.is_set():
            return {"error": f"it takes longer than {PATIENCE:g} seconds"}
        return {"error": f"it needs too much memory, or more than {SECONDS} seconds"}

    @staticmethod
    def _exchange(process: subprocess.Popen[bytes], line: bytes) -> dict[str, Any] | None:
        """The answer; None if the process ended without one."""
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the process that renders templates has no pipes")
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:  # it has ended
            return None
        if not answer.endswith(b"\n"):
            return None
        found: dict[str, Any] = json.loads(answer)
        return found

    def _started(self) -> subprocess.Popen[bytes]:
        """The process; a forked process starts another, so as not to read its parent's answers."""
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            if self._owner == os.getpid():
                self.close()
            script = Path(__file__).with_name("_template_child.py")
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", str(script)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for edgepack
                )
            except OSError as error:
                raise EdgepackError(
                    f"the process that renders chat templates does not start: {error.strerror}"
                ) from error
            self._owner = os.getpid()
        return self._process

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        process.wait()


_child = _Child()
atexit.register(_child.close)
