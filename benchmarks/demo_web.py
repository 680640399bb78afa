"""The browser variant of the demo beside llama.cpp on this machine: the same files, in turns.

    python -m benchmarks.demo_web DIR --modules FOLDER [--rounds 3]

DIR is an output folder (GGUF), FOLDER where `npm install` put playwright-core and what the page
runs (`edgepack.demo.web_npm.npm_line`). Chromium runs without a window. A round loads the model in
the page with one thread and with two, and natively with as many, one after another, and times a
prompt of 64 tokens and 16 decoded ones; speeds are medians, ratios those of medians. Then the page
trains on one note.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.same_type import RESULTS
from edgepack.bench import bench
from edgepack.core.progress import finish
from edgepack.core.tables import markdown
from edgepack.demo.web import write_web
from edgepack.demo.web_models import Training
from tests.support.web import Browser, browser, served

PAGE = RESULTS / "demo_web.md"
PROMPT, DECODE = 64, 16
THREADS = (1, 2)
LENGTH, STEPS = 64, 4
NOTE = {"prompt": "What is my dog called?", "completion": "Your dog is called Biscuit."}


def in_page(page: Browser, model: str, threads: int) -> dict[str, float]:
    given = {"model": model, "prompt": PROMPT, "decode": DECODE, "rounds": 1, "threads": threads}
    last = page.ask("bench", "bench", adapters=[], **given)[-1]
    if last["event"] != "benched":
        raise SystemExit(f"the page: {last['message']}")
    return seconds_of(last["bench"]["models"][0])


def natively(folder: Path, threads: int) -> dict[str, float]:
    cases = {"prompts": (PROMPT,), "decode": DECODE}
    found = bench([folder], threads=[threads], rounds=1, limits=False, **cases)
    return seconds_of(found.model_dump()["models"][0])


def seconds_of(result: dict[str, Any]) -> dict[str, float]:
    times = {one["case"]["kind"]: one["seconds"][0] for one in result["timings"]}
    return {"load": result["loading"][0]["seconds"][0], **times}


def training(page: Browser, model: str) -> list[dict[str, Any]]:
    options = {"steps": STEPS, "replay": 0}
    given = {"model": model, "adapter": "bench", "examples": [NOTE], "options": options}
    return page.ask("tune", "train", "ended", "failed", threads=1, **given)


def row(name: str, turns: list[dict[str, float]], native: list[dict[str, float]]) -> list[str]:
    own, other = (
        {key: median(turn[key] for turn in many) for key in many[0]} for many in (turns, native)
    )
    speeds = [PROMPT / own["prompt"], DECODE / own["decode"]]
    ratios = [other[key] / own[key] for key in ("prompt", "decode")]
    return [
        name,
        f"{own['load']:.1f}",
        *(f"{s:.1f}" for s in speeds),
        *(f"{r:.2f}" for r in ratios),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--modules", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["EDGEPACK_NODE"] = str(options.modules.resolve())
    turns: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        site = Path(name) / "site"
        given = {"modules": options.modules, "training": Training(length=LENGTH)}
        finish(write_web([options.folder], site, **given))
        with served(site) as (address, _), browser(Path(name) / "profile") as page:
            page.goto(address)
            model = page.ask("app", "models")[-1]["models"][0]["id"]
            for _ in range(options.rounds):
                for threads in THREADS:
                    found = in_page(page, model, threads)
                    turns.setdefault(("page", threads), []).append(found)
                    turns.setdefault(("native", threads), []).append(
                        natively(options.folder, threads)
                    )
            trained = training(page, model)
    rows = [
        ["", "load, s", "prompt, tokens/s", "decode, tokens/s", "prompt, share", "decode, share"]
    ]
    for threads in THREADS:
        native = turns["native", threads]
        for kind, called in (("page", "in Chromium"), ("native", "llama.cpp")):
            label = f"{called}, {threads} thread{'s' if threads > 1 else ''}"
            rows.append(row(label, turns[kind, threads], native))
    ended = trained[-1]
    lines = markdown(rows)
    if ended["event"] == "ended":
        lines += [
            "",
            f"A step of training in Chromium ({LENGTH} tokens, 1 thread): "
            f"{ended['seconds'] / ended['steps']:.1f} s, "
            f"{ended['memory']['peak'] / 1e6:.0f} MB of wasm memory.",
        ]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
