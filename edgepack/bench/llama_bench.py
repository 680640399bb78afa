"""llama-bench's own JSON (``llama-bench -o json``) beside ours."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated

from pydantic import Field

from edgepack.bench.protocol import Case
from edgepack.bench.results import Bench
from edgepack.bench.statistics import spread
from edgepack.bench.tables import name_case
from edgepack.core.tables import align
from edgepack.core.untrusted import Untrusted, explain, read_json
from edgepack.errors import EdgepackError

Positive = Annotated[int, Field(gt=0)]


class LlamaBench(Untrusted):
    """One test of llama-bench's."""

    model_filename: str
    n_prompt: int
    n_gen: int
    n_depth: int = 0
    n_threads: Positive
    samples_ns: list[Positive] = Field(min_length=1)

    @property
    def case(self) -> Case | None:
        """The same in our words; None for prompts with answers (``-pg``), which we do not time."""
        if bool(self.n_prompt) == bool(self.n_gen):
            return None
        if self.n_prompt:
            return Case(kind="prompt", tokens=self.n_prompt, depth=self.n_depth)
        return Case(kind="decode", tokens=self.n_gen, depth=self.n_depth)

    @property
    def tokens_per_second(self) -> float:
        """Median over its repetitions."""
        return (self.n_prompt + self.n_gen) * 1e9 / median(self.samples_ns)


def read_llama_bench(path: Path) -> list[LlamaBench]:
    """The tests in a file."""
    from pydantic import TypeAdapter, ValidationError

    if not path.is_file():
        raise EdgepackError(f"--against: {path}: no such file", hint="llama-bench -o json > FILE")
    data = read_json(path, place=str(path))
    try:
        return TypeAdapter(list[LlamaBench]).validate_python(data)
    except ValidationError as error:
        raise EdgepackError(
            f"--against: {path}: {explain(error)}", hint="llama-bench -o json > FILE"
        ) from None


def beside(found: Bench, theirs: list[LlamaBench]) -> list[str]:
    """Lines of a table: our speeds and llama-bench's, where name of the file, case and threads are
    the same. (llama-bench runs without factors.)"""
    rows = [["model", "case", "threads", "edgepack", "llama-bench", "ratio", "±"]]
    for model in found.models:
        for timing in model.timings:
            for test in theirs:
                same = (test.case, test.n_threads) == (timing.case, timing.threads)
                if not same or Path(test.model_filename).name != model.file:
                    continue
                ours, own = timing.tokens_per_second, test.tokens_per_second
                noise = max(spread(timing.seconds), spread(test.samples_ns))
                row = [model.name, name_case(timing.case), str(timing.threads), f"{ours:.1f}"]
                rows.append([*row, f"{own:.1f}", f"{ours / own:.3f}", f"{noise:.1%}"])
    if len(rows) == 1:
        return ["--against: no file, case and number of threads is in both"]
    return align(rows)
