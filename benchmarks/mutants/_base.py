"""What a break is."""

from __future__ import annotations

Groups = dict[tuple[str, str], dict[str, tuple[str, str]]]
"""(File, tests that should notice) → what is broken → (text as it is, text instead)."""
