"""Talking to a packed model."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli._adapters import USAGE, AdapterNames, Adapters
from edgepack.cli._app import app, say

if TYPE_CHECKING:
    from edgepack.cli.terminal import Conversation
    from edgepack.runtimes.base import Runtime, Sampling


@app.command()
def chat(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An output folder.")],
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer this and exit.")
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")] = None,
    factors: Annotated[
        bool, typer.Option("--factors/--no-factors", help="With or without L·R.")
    ] = True,
    adapter: AdapterNames = None,
    max_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Longest answer.")] = 512,
    temperature: Annotated[
        float, typer.Option(metavar="F", min=0, help="0: always the likeliest token.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="For temperatures above 0.")] = 0,
    context: Annotated[
        int, typer.Option(metavar="N", min=64, help="Tokens the model sees at once.")
    ] = 2048,
) -> None:
    """Talk to a packed model through its runtime: llama.cpp or ONNX Runtime.

    In the conversation, /adapter lists the adapters in DIR/adapters, and /adapter NAME on|off|0.5
    switches one.
    """
    from edgepack.cli.terminal import Conversation, questions
    from edgepack.core.artifact import Artifact
    from edgepack.planning.target import get
    from edgepack.runtimes.base import Sampling
    from edgepack.runtimes.models import Model

    artifact = Artifact.open(folder)
    sampling = Sampling(temperature=temperature, repeat_penalty=1.1, seed=seed)
    if not factors:
        get(artifact.manifest["target"]).without_factors()
    adapters = Adapters(folder, adapter or (), others=prompt is None, factors=factors)
    used = artifact.factors if factors else None
    model = Model(str(folder), artifact.base, used, adapters.files)
    with model.open(context) as runtime:
        conversation = Conversation(runtime, system, max_tokens)
        if prompt is not None:
            _answer(runtime, conversation, prompt, max_tokens, sampling)
            return
        for question in questions(USAGE if adapters.entries else ""):
            if question.split()[0] == "/adapter":
                for line in adapters.command(question, runtime):
                    say(line)
                continue
            with suppress(KeyboardInterrupt):
                _answer(runtime, conversation, question, max_tokens, sampling)


def _answer(
    runtime: Runtime,
    conversation: Conversation,
    question: str,
    max_tokens: int,
    sampling: Sampling,
) -> None:
    """Print an answer as it comes; Ctrl-C keeps what there is of it."""
    from edgepack.runtimes.chat import chat as answer

    messages, dropped = conversation.ask(question)
    if dropped:
        say(f"(the context is full: {dropped} old messages are forgotten)")
    parts: list[str] = []
    try:
        for part in answer(runtime, messages, max_tokens, sampling):
            parts.append(part)
            print(part, end="", flush=True)
    finally:
        print(flush=True)
        conversation.answered("".join(parts))
