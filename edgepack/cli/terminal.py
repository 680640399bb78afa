"""What a person sees while something runs: a bar or plain lines of progress, a conversation."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from edgepack.core.progress import Progress

_EVERY = 5.0  # seconds between plain lines
_WINDOW = 60.0  # seconds of the past that the time left is estimated from

Draw = Callable[[Progress], None]


class Clock:
    """Time left in a stage, from how fast its last minute went."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()
        self._phase: tuple[str, float] | None = None

    def left(self, step: Progress) -> float | None:
        """Seconds, None while nothing is known."""
        now = time.monotonic()
        phase = (step.stage, step.total)
        if phase != self._phase or (self._seen and step.done < self._seen[-1][1]):
            self._seen.clear()  # another unit of work
            self._phase = phase
        self._seen.append((now, step.done))
        while len(self._seen) > 2 and now - self._seen[0][0] > _WINDOW:
            self._seen.popleft()
        (then, before), (_, done) = self._seen[0], self._seen[-1]
        if done <= before or now - then < 1:
            return None
        return (now - then) * (step.total - done) / (done - before)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@contextmanager
def drawing() -> Iterator[Draw]:
    """Where progress goes: a bar on stderr if that is a terminal, else plain lines."""
    console = Console(stderr=True)
    if not console.is_terminal:
        lines = Lines()
        yield lines.draw
        lines.end()
        return
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=12),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[left]:>10}"),
        TextColumn(
            "[dim]{task.fields[label]}",
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        ),
    )
    with Bar(*columns, console=console, transient=True, expand=True) as bar:
        bars = Bars(bar)
        yield bars.draw
        bars.end()


class Stages(ABC):
    """Keeps track of which stage runs, and says of each how long it took."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._stage: str | None = None
        self._since = time.monotonic()

    def turns(self, step: Progress) -> bool:
        """Whether `step` begins another stage."""
        if step.stage == self._stage:
            return False
        self.end()
        self._stage, self._since = step.stage, time.monotonic()
        return True

    def end(self) -> None:
        """The stage is through."""
        if self._stage:
            self.line(f"{self._stage:<9}  done in {duration(time.monotonic() - self._since)}")

    @abstractmethod
    def line(self, text: str) -> None:
        """Print a line that stays."""


class Bars(Stages):
    """One bar on a terminal; a line stays for each stage that is done."""

    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self._bar = bar
        self._task = bar.add_task("plan", total=None, left="", label="reading headers")

    def draw(self, step: Progress) -> None:
        """Show a step."""
        self.turns(step)
        left = self.clock.left(step)
        self._bar.update(
            self._task,
            description=step.stage,
            total=step.total,
            completed=step.done,
            left="" if left is None else duration(left),
            label=_short(step.label),
        )

    def line(self, text: str) -> None:
        """Print above the bar."""
        self._bar.console.print(text, highlight=False)


class Lines(Stages):
    """A line every few seconds, and where a stage begins."""

    def __init__(self) -> None:
        super().__init__()
        self._last = 0.0

    def draw(self, step: Progress) -> None:
        """Print a step, if it is time."""
        begins, now = self.turns(step), time.monotonic()
        left = self.clock.left(step)
        if not begins and now - self._last < _EVERY:
            return
        self._last = now
        rest = "" if left is None else f"  {duration(left)} left"
        done = 100 * step.done / step.total if step.total else 0
        self.line(f"{step.stage:<9}  {done:3.0f} %{rest}  {_short(step.label)}")

    def line(self, text: str) -> None:
        """Print on stderr."""
        print(text, file=sys.stderr, flush=True)


def _short(label: str) -> str:
    return label.removeprefix("model.")


class Conversation:
    """The turns so far, the oldest of which go when the context is full."""

    def __init__(self, runtime: Any, system: str | None, max_tokens: int) -> None:
        self._runtime = runtime
        self._system = [{"role": "system", "content": system}] if system else []
        self._turns: list[dict[str, str]] = []
        self._room = max(1, min(max_tokens, runtime.context // 4))

    def ask(self, question: str) -> tuple[list[dict[str, str]], int]:
        """The messages to send for a question, and how many old ones had to go."""
        self._turns.append({"role": "user", "content": question})
        dropped = 0
        while len(self._turns) > 1 and self._length() + self._room > self._runtime.context:
            del self._turns[:2]
            dropped += 2
        return [*self._system, *self._turns], dropped

    def answered(self, answer: str) -> None:
        """Keep an answer, complete or interrupted."""
        self._turns.append({"role": "assistant", "content": answer})

    def _length(self) -> int:
        prompt = self._runtime.chat_prompt([*self._system, *self._turns])
        return 1 + len(self._runtime.tokenize(prompt, bos=False, special=True))


def questions(usage: str = "") -> Iterator[str]:
    """What the user types, until /exit or the end of the input; with line editing. `usage` explains
    more commands."""
    interactive = sys.stdin.isatty()
    if interactive:
        with suppress(ImportError):  # Windows has none
            import readline  # noqa: F401
        print("/exit or Ctrl-D ends, Ctrl-C stops an answer.", file=sys.stderr)
        if usage:
            print(usage, file=sys.stderr)
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except (EOFError, KeyboardInterrupt) as end:
            if interactive:
                print()
            if isinstance(end, EOFError):
                return
            raise
        if line == "/exit":
            return
        if line:
            yield line
