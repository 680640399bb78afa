"""Programs that run what edgepack exports, and the parts of them that edgepack borrows.

Takes a file (looked at before a runtime opens it) or a checkpoint; gives logits, scores and chats.
May import ``model``, ``checkpoint`` and ``core``.
"""
