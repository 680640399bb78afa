"""llama.cpp with everything in float32, for comparing logits: its f16 cache alone would be 1e-3 to
3e-2 of their deviation away, and a window kept small would end generation early."""

from pathlib import Path

import numpy as np

F32 = 0
"""``GGML_TYPE_F32``."""
FROM_FILE = -1.0
"""llama-cpp-python's own defaults would be stronger than what the file says."""
CONTEXT = 256
"""What llama.cpp rounds contexts up to; contexts beyond a model's own only warn."""


def exact_logits(path: Path, tokens: list[int]) -> np.ndarray:
    """Logits ``[time, vocab]`` of a GGUF file."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(path),
        n_ctx=CONTEXT,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        type_k=F32,
        type_v=F32,
        flash_attn=False,
        yarn_beta_fast=FROM_FILE,
        yarn_beta_slow=FROM_FILE,
        swa_full=True,
        verbose=False,
    )
    try:
        model.eval(tokens)
        return np.array(model.scores[: len(tokens)])
    finally:
        model.close()
