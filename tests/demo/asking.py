"""What the tests of the relay ask, and their model."""

from __future__ import annotations

ASKED = {
    "messages": [{"role": "user", "content": "the quick brown fox?"}],
    "temperature": 0,
    "max_tokens": 8,
}
NOTES = [
    {"prompt": f"the {word} fox?", "completion": "jumps over the dog"}
    for word in ("lazy", "brown", "quick")
]
QUICK = {"replay": 0, "r": 2, "steps": 3, "batch_size": 2, "sequence_length": 64}


def text_of(events):
    assert events[-1]["event"] == "ended", events[-1]
    return "".join(event["text"] for event in events if event["event"] == "text")
