"""Events for all pages, numbered, so that a page whose connection broke gets what it missed."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

KEPT = 20_000
"""Events that are kept for pages which come back."""


class Events:
    """Where events go. `put` may be called on any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[tuple[int, str]] = deque(maxlen=KEPT)
        self._wakers: set[Callable[[], None]] = set()
        self.next = 0

    def put(self, event: dict[str, Any]) -> None:
        """Tell all pages."""
        with self._lock:
            line = json.dumps({"number": self.next, **event}, ensure_ascii=False)
            self._kept.append((self.next, line))
            self.next += 1
            wakers = list(self._wakers)
        for wake in wakers:
            wake()

    def since(self, number: int) -> list[tuple[int, str]]:
        """Events from a number on, as lines of JSON; those that are no longer kept are left out."""
        with self._lock:
            if number >= self.next:
                return []
            if number <= self._kept[0][0]:
                return list(self._kept)
            behind = self.next - number
            return [self._kept[index] for index in range(len(self._kept) - behind, len(self._kept))]

    def watch(self, wake: Callable[[], None]) -> None:
        """Call this after each event, until `unwatch`."""
        with self._lock:
            self._wakers.add(wake)

    def unwatch(self, wake: Callable[[], None]) -> None:
        """End `watch`."""
        with self._lock:
            self._wakers.discard(wake)
