"""Training with 4-bit integers (Xi et al., arXiv 2306.11987), in plain torch.

`Linear` replaces `torch.nn.Linear`: inputs and weights are rounded in a Hadamard domain with
learned steps (`lsq`, `hadamard`), gradients are split in two 4-bit halves and sampled (`sampling`).
No CPU multiplies 4-bit integers, so the codes are multiplied as float32. Their products are exact
there; training comes out as it would on a device with INT4, but not faster.
"""

from edgepack.finetune.int4.linear import Linear, convert

__all__ = ["Linear", "convert"]
