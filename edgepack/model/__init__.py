"""The forward pass, hidden states on disk, and models made of another's weights.

Takes a checkpoint; gives logits and hidden states (`decoder`, `stream`), or a checkpoint that is
padded, rotated, centered or sliced. May import ``checkpoint``, ``recipe`` and below.
"""
