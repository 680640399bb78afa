"""Published models of every family, and their sizes: what to give `edgepack init`.

Sizes are those of the language model, rounded as its authors name them. They are for people, and
for saying what would fit; plans count the weights that a model has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Model(NamedTuple):
    """A repository on the Hugging Face Hub and its number of weights."""

    name: str
    weights: float

    @property
    def short(self) -> str:
        """The name without its owner."""
        return self.name.partition("/")[2]

    @property
    def size(self) -> str:
        """The number of weights, such as 1.7B or 135M."""
        return f"{self.weights / 1e9:.3g}B" if self.weights >= 1e9 else f"{self.weights / 1e6:.3g}M"


PUBLISHED: Mapping[str, tuple[Model, ...]] = {
    "llama": (
        Model("HuggingFaceTB/SmolLM2-135M-Instruct", 135e6),
        Model("HuggingFaceTB/SmolLM2-360M-Instruct", 362e6),
        Model("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1.1e9),
        Model("meta-llama/Llama-3.2-1B-Instruct", 1.24e9),
        Model("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1.71e9),
        Model("meta-llama/Llama-3.2-3B-Instruct", 3.21e9),
        Model("meta-llama/Llama-3.1-8B-Instruct", 8.03e9),
    ),
    "mistral": (Model("mistralai/Mistral-7B-Instruct-v0.3", 7.25e9),),
    "qwen2": (
        Model("Qwen/Qwen2.5-0.5B-Instruct", 494e6),
        Model("Qwen/Qwen2.5-1.5B-Instruct", 1.54e9),
        Model("Qwen/Qwen2.5-3B-Instruct", 3.09e9),
        Model("Qwen/Qwen2.5-7B-Instruct", 7.62e9),
    ),
    "qwen3": (
        Model("Qwen/Qwen3-0.6B", 596e6),
        Model("Qwen/Qwen3-1.7B", 1.72e9),
        Model("Qwen/Qwen3-4B", 4.02e9),
        Model("Qwen/Qwen3-8B", 8.19e9),
    ),
    "opt": (
        Model("facebook/opt-125m", 125e6),
        Model("facebook/opt-1.3b", 1.32e9),
        Model("facebook/opt-2.7b", 2.65e9),
    ),
    "phi": (Model("microsoft/phi-1_5", 1.42e9), Model("microsoft/phi-2", 2.78e9)),
    "gemma": (Model("google/gemma-2b-it", 2.51e9),),
    "gemma2": (Model("google/gemma-2-2b-it", 2.61e9), Model("google/gemma-2-9b-it", 9.24e9)),
    "gemma3_text": (
        Model("google/gemma-3-270m-it", 268e6),
        Model("google/gemma-3-1b-it", 1.0e9),
        Model("google/gemma-3-4b-it", 3.88e9),
    ),
    "phi3": (
        Model("microsoft/Phi-3.5-mini-instruct", 3.82e9),
        Model("microsoft/Phi-4-mini-instruct", 3.84e9),
    ),
    "smollm3": (Model("HuggingFaceTB/SmolLM3-3B", 3.08e9),),
    "ministral3": (
        Model("mistralai/Ministral-3-3B-Instruct-2512", 3.4e9),
        Model("mistralai/Ministral-3-8B-Instruct-2512", 8.4e9),
    ),
    "granite": (Model("ibm-granite/granite-3.3-2b-instruct", 2.53e9),),
    "granitemoehybrid": (
        Model("ibm-granite/granite-4.0-350m", 350e6),
        Model("ibm-granite/granite-4.0-1b", 1.6e9),
        Model("ibm-granite/granite-4.0-micro", 3.4e9),
    ),
    "olmo2": (
        Model("allenai/OLMo-2-0425-1B-Instruct", 1.48e9),
        Model("allenai/OLMo-2-1124-7B-Instruct", 7.3e9),
    ),
    "olmo3": (Model("allenai/Olmo-3-7B-Instruct", 7.3e9),),
    "ernie4_5": (Model("baidu/ERNIE-4.5-0.3B-PT", 361e6),),
    "exaone4": (Model("LGAI-EXAONE/EXAONE-4.0-1.2B", 1.28e9),),
    "hunyuan_v1_dense": (
        Model("tencent/Hunyuan-0.5B-Instruct", 540e6),
        Model("tencent/Hunyuan-1.8B-Instruct", 1.8e9),
    ),
    "lfm2": (
        Model("LiquidAI/LFM2-350M", 354e6),
        Model("LiquidAI/LFM2-700M", 742e6),
        Model("LiquidAI/LFM2-1.2B", 1.17e9),
        Model("LiquidAI/LFM2-2.6B", 2.57e9),
    ),
    "lfm2_moe": (Model("LiquidAI/LFM2-8B-A1B", 8.3e9),),
    "qwen3_5_text": (
        Model("Qwen/Qwen3.5-0.8B", 0.8e9),
        Model("Qwen/Qwen3.5-2B", 2e9),
        Model("Qwen/Qwen3.5-4B", 4e9),
    ),
    "gemma4_text": (Model("google/gemma-4-E2B-it", 5e9), Model("google/gemma-4-E4B-it", 8e9)),
    "qwen3_moe": (Model("Qwen/Qwen3-30B-A3B", 30.5e9),),
    "gpt_oss": (Model("openai/gpt-oss-20b", 20.9e9),),
}
"""Family → models, the smallest first. Families whose plug-in is not there are not shown."""
