"""What other programs need to run a GGUF folder, and what they refuse: facts with sources."""

from __future__ import annotations

from collections.abc import Set

LLAMA_CPP = {"mxfp4": 6194, "q1_0": 9452, "q2_0": 10015}
"""Type → the oldest build of llama.cpp that is known to read it; any build reads the others.
mxfp4: ggml-org/llama.cpp discussion 15396. q1_0: ollama/ollama 0.30.0 (LLAMA_CPP_VERSION). q2_0: a
comment of 2026-07-15 in ggml-org/llama.cpp pull request 24448."""

NO_ADAPTERS_SINCE = "0.34.1"
"""From here on `ollama create` refuses ADAPTER, whatever the model: ollama/ollama pull request
14969, as issue 1651 of generative-computing/mellea reports it. Older ones take one GGUF adapter
(server/create.go, read from 0.5.0 to 0.33.0-rc2)."""
ADAPTERS_SINCE = {"qwen3": "0.30"}
"""GGUF architecture → from where on Ollama runs its adapters. 0.12 to 0.24 run qwen3 by an engine
that says `loras are not yet implemented` (OllamaEngineRequired in fs/ggml/ggml.go,
runner/ollamarunner/runner.go); later ones run every GGUF by llama-server with --lora
(llm/llama_server.go). Read at each release from 0.11.11 to 0.30.1. LM Studio has no adapters at
all: lmstudio-ai/lms issue 110, open in 2026."""
REFUSED = {
    "q1_0": "before 0.30",
    "q2_0": "(all versions up to 0.33, at least)",
    "tq2_0": "0.31.2 and newer",
}
"""Type → the versions of Ollama that refuse files with it, because they know no size of its blocks
(fs/ggml/type.go, TypeSize in fs/ggml/ggml.go, Decode in fs/ggml/gguf.go; read up to 0.33.0-rc2)."""
PROPOSED = frozenset({"iq2_nl", "iq3_nl"})
"""Types that no release of llama.cpp reads."""
UNREAD = frozenset({"q2_0", "nvfp4", *PROPOSED})
"""Types that none of those versions of Ollama is known to read."""

FOLD = "export.merge_factors: true folds them into base.gguf"


def llama_cpp(types: Set[str]) -> str | None:
    """The llama.cpp that files with these types need, if not any."""
    builds = {name: LLAMA_CPP[name] for name in types if name in LLAMA_CPP}
    if not builds:
        return None
    newest = max(builds, key=builds.__getitem__)
    return f"llama.cpp b{builds[newest]} or later (for {newest})"


def refusals(architecture: str, types: Set[str], *, factors: bool) -> list[str]:
    """What Ollama and LM Studio refuse of a folder; `architecture` as GGUF names it."""
    refused = sorted(REFUSED.keys() & types)
    lines = [f"Ollama {REFUSED[name]} refuses files with {name}" for name in refused]
    if factors:
        begin = ADAPTERS_SINCE.get(architecture)
        span = f"from {begin} on and before" if begin else "before"
        lines.append(
            f"factors are an adapter, which Ollama takes only {span} {NO_ADAPTERS_SINCE}, and LM "
            f"Studio never; {FOLD}"
        )
    return lines
