"""Every kind of folder and file that edgepack makes, of tiny models:
``python -m tests.support.everything PLACE all|files``.

What goes in is in ``PLACE/in`` (`write_inputs`), what comes out in ``PLACE/out``. A process of its
own, so that a test can give it another user, HOME, locale, number of threads, or no network.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.support.commands import run, write
from tests.support.network import counters
from tests.support.tiny import TEXT, make_model

EXAMPLES = [{"prompt": f"{i} + 1?", "completion": f"{i + 1}"} for i in range(4)]
LINEAR = {
    "merge_method": "linear",
    "models": [{"model": name, "parameters": {"weight": 0.5}} for name in ("llama", "other")],
}
QUICK = {"damping": [0.1], "iterations": 1}
MEASURE = {"tokens": 256, "context": 64, "stock": False}
TRAIN = ("--data", "notes.jsonl", "--steps", 2, "--rank", 2, "--name", "notes")
ASK = ("--prompt", "the dog", "--max-tokens", 4)
BENCH = ("--prompt", 8, "--decode", 2, "--rounds", 1, "--threads", 1, "--no-limits")
OUT = Path("../out")
COUNTERS = "network.json"
"""What the kernel counted of the network while everything was made, in PLACE."""


def write_inputs(place: Path) -> None:
    """Two models, a text, examples, and recipes."""
    place.mkdir(parents=True)
    for seed, name in enumerate(("llama", "other")):
        make_model(place / name, intermediate=128, seed=seed)
    (place / "text.txt").write_text("\n".join(TEXT * 30), encoding="utf-8")
    (place / "notes.jsonl").write_text("\n".join(map(json.dumps, EXAMPLES)), encoding="utf-8")
    write(place / "packed.yaml", compress=QUICK, export={"measure": MEASURE})
    sized = {"bits_per_weight": 5.5, "candidates": ["q4_0", "q8_0"], "ranks": [0, 4], **QUICK}
    calibrate = {"source": "text.txt", "tokens": 512, "sequence_length": 64}
    plain = {"model": "llama", "calibrate": calibrate, "export": {"measure": MEASURE}}
    (place / "sized.yaml").write_text(json.dumps({**plain, "compress": sized}))
    plain["export"] = {"measure": {**MEASURE, "text": "text.txt"}}
    (place / "plain.yaml").write_text(json.dumps(plain))
    (place / "merge.yaml").write_text(json.dumps(LINEAR))


def edgepack(*arguments: object) -> str:
    """Carry out a command, which must not fail; what it says."""
    started = time.monotonic()
    result = run(*arguments)
    took = time.monotonic() - started
    print(f"{took:5.1f} s  edgepack {' '.join(map(str, arguments))}", file=sys.stderr)
    if result.exit_code:
        raise SystemExit(result.output + result.stderr)
    return result.stdout


def make_files() -> None:
    """Folders that people publish."""
    for name, target in (("packed", "gguf"), ("packed", "onnx"), ("plain", "checkpoint")):
        edgepack("build", f"{name}.yaml", "--target", target, "--out", OUT / target)
    edgepack("merge", "merge.yaml", OUT / "merged")
    edgepack("finetune", OUT / "gguf", *TRAIN)


def make_the_rest() -> None:
    """What is made of them, and what people look at."""
    edgepack("build", "sized.yaml", "--out", OUT / "sized")
    edgepack("merge-adapter", OUT / "gguf", "notes", "--out", OUT / "with-notes")
    edgepack("extract-lora", "other", "llama", "--out", OUT / "lora", "--rank", 2)
    edgepack("export-training", OUT / "gguf", "--out", OUT / "training", "--length", 16)
    edgepack("bench", OUT / "gguf", *BENCH, "--out", OUT / "bench")
    said = OUT / "said"
    said.mkdir()
    for target, *adapter in (("gguf", "--adapter", "notes"), ("onnx",)):
        answer = edgepack("chat", OUT / target, *adapter, *ASK)
        (said / f"{target}.txt").write_text(answer, encoding="utf-8")
    for name, *command in (
        ("evaluate", "evaluate", OUT / "gguf", "--tokens", 128),
        ("show", "show", OUT / "gguf"),
        ("verify", "verify", OUT / "gguf", "--measure"),
    ):
        (said / f"{name}.json").write_text(edgepack(*command, "--json"), encoding="utf-8")
    (said / "answer.json").write_text(serve(OUT / "gguf"), encoding="utf-8")


CONNECTED: list[object] = []
"""Connections that `serve` had to be made to."""


def serve(folder: Path) -> str:
    """An answer of `edgepack serve`, which this process runs until it has answered."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    answers: list[str] = []

    def ask() -> None:
        body = {"messages": [{"role": "user", "content": "the dog"}], "max_tokens": 4}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        kind = {"content-type": "application/json"}
        asked = urllib.request.Request(url, json.dumps(body).encode(), kind)
        while len(CONNECTED) < 200 and not answers:
            CONNECTED.append(port)
            try:
                with urllib.request.urlopen(asked, timeout=20) as answer:
                    answers.append(answer.read().decode())
            except OSError:
                time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=ask)
    thread.start()
    edgepack("serve", folder, "--port", port, "--context", 64, "--threads", 1)
    thread.join()
    return answers[0]


if __name__ == "__main__":
    home = Path(sys.argv[1])
    (home / "out").mkdir()
    os.chdir(home / "in")
    steps: dict[str, list[Callable[[], None]]] = {"all": [make_files, make_the_rest]}
    for step in steps.get(sys.argv[2], [make_files]):
        step()
    (home / COUNTERS).write_text(json.dumps(counters(len(CONNECTED))))
