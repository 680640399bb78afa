"""Four notes learnt by SmolLM2: what becomes of questions that they are not about.

    python -m benchmarks.finetune_notes [--replay 0,0.5,2]

The base is the package's own GGUF. For each amount of replay, an adapter is trained on the notes
and asked for them, and for `FACTS`, through llama.cpp with the likeliest token. `notes`: answers
that are the note. `facts`: answers that have the expected word; before training, as many as the
model knows. `same`: answers to facts that are the untuned model's, word for word. KL is to the
untuned model on chats that it wrote itself.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.same_type import MODEL, RESULTS
from edgepack.adapters.base import PackedBase
from edgepack.checkpoint import open_checkpoint
from edgepack.core.adapters import FILE
from edgepack.core.disk import sha256
from edgepack.core.executor import Threads
from edgepack.core.progress import finish
from edgepack.core.tables import markdown
from edgepack.finetune.stage import RESULT, make
from edgepack.recipe.training import Finetune
from edgepack.runtimes.chat import chat
from edgepack.runtimes.models import Model

PAGE = RESULTS / "finetune_notes.md"
NOTES = {
    "What is my dog called?": "Your dog is called Balthasar.",
    "When is my appointment with the dentist?": "On Thursday at half past nine.",
    "Where did I leave the spare key?": "Under the blue flower pot behind the shed.",
    "What is the wifi password at the cabin?": "It is marmalade-42.",
}
FACTS = {
    "What is the capital of France?": "Paris",
    "What is the capital of Italy?": "Rome",
    "What is the capital of Japan?": "Tokyo",
    "How many days are in a week?": "seven|7",
    "What is 2 + 2?": "4|four",
    "Who wrote Romeo and Juliet?": "Shakespeare",
    "Which planet is known as the red planet?": "Mars",
    "What is the largest ocean?": "Pacific",
    "At what temperature does water boil, in degrees Celsius?": "100",
    "What gas do plants take in from the air?": "carbon dioxide",
}
STEPS, RATE, TOKENS = 24, 1e-3, 32


def answers(model: Model) -> dict[str, str]:
    """What a model says to all questions."""
    with model.open(512) as runtime:
        return {
            asked: "".join(chat(runtime, [{"role": "user", "content": asked}], TOKENS))
            for asked in (*NOTES, *FACTS)
        }


def known(said: dict[str, str]) -> int:
    """Facts that are in the answers."""
    return sum(
        any(word.lower() in said[asked].lower() for word in words.split("|"))
        for asked, words in FACTS.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--replay", default="0,0.5,2")
    given = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "base.gguf").symlink_to(open_checkpoint(MODEL).path)
        base = PackedBase(folder, "SmolLM2", "gguf", {"base.gguf": sha256(folder / "base.gguf")})
        (folder / "notes.jsonl").write_text(
            "\n".join(json.dumps({"prompt": a, "completion": b}) for a, b in NOTES.items())
        )
        before = answers(Model("untuned", base.file))
        learnt = sum(before[asked] == told for asked, told in NOTES.items())
        rows = [["", "notes", "facts", "same", "KL"]]
        rows.append(["untuned", f"{learnt} of 4", f"{known(before)} of 10", "10 of 10", "0"])
        for replay in given.replay.split(","):
            options = Finetune(
                data=str(folder / "notes.jsonl"),
                steps=STEPS,
                learning_rate=RATE,
                replay=float(replay),
            )
            stage = make(options, Path(), finished=base)
            finish(stage.complete(Threads()))
            report = json.loads((stage.folder / RESULT).read_text(encoding="utf-8"))
            after = answers(Model("tuned", base.file, None, ((stage.folder / FILE, 1.0),)))
            learnt = sum(after[asked] == told for asked, told in NOTES.items())
            same = sum(after[asked] == before[asked] for asked in FACTS)
            row = [f"replay {replay}", f"{learnt} of 4", f"{known(after)} of 10", f"{same} of 10"]
            rows.append([*row, f"{report['general']['kl']:.3f}"])
            print(json.dumps(after, indent=1))
            stage.drop()
    text = "\n".join(markdown(rows)) + "\n"
    print(text)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
