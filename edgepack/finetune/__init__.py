"""Train the factors L and R of a packed model while its codes Q stay as they are.

`arithmetic` multiplies by a frozen matrix in float32, bfloat16, INT8 or simulated INT4; `int4` is
the training in 4 bits of arXiv 2306.11987 for whole layers. Both are pure functions of tensors.
"""
