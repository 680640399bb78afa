"""A runtime as a model of lm-evaluation-harness (``pip install 'edgepack[lm-eval]'``), to run its
multiple-choice tasks on the file that will be shipped.

>>> import lm_eval  # doctest: +SKIP
>>> with LlamaCpp(Path("out/base.gguf"), context=4096, sequences=32) as runtime:  # doctest: +SKIP
...     found = lm_eval.simple_evaluate(HarnessModel(runtime), tasks=["openbookqa", "sciq"])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from edgepack.errors import EdgepackError, missing_extra
from edgepack.metrics.multiple_choice import score
from edgepack.runtimes.base import Runtime

try:
    from lm_eval.api.model import LM
except ImportError as error:
    raise missing_extra("lm-eval", "lm-eval") from error

CHOOSE = "choose multiple-choice tasks"


class HarnessModel(LM):  # type: ignore[misc]
    """Log-likelihoods for the harness; tasks that generate text, or score a whole document with a
    rolling window, are refused."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self._runtime = runtime

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log p, whether greedy decoding gives it) of each request's (context, continuation)."""
        pairs = [request.args for request in requests]
        if not all(context for context, _ in pairs):
            raise EdgepackError("a request has no context", hint=CHOOSE)
        return list(score(self._runtime, pairs))

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> NoReturn:
        """Not supported: `edgepack evaluate --text` measures perplexity."""
        raise EdgepackError("rolling likelihoods are not supported", hint=CHOOSE)

    def generate_until(self, requests: Sequence[Any]) -> NoReturn:
        """Not supported."""
        raise EdgepackError("tasks that generate text are not supported", hint=CHOOSE)
