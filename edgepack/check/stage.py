"""The check stage: no weight is computed with that is no number."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.check.finite import STAGE, check_values
from edgepack.checkpoint import Checkpoint
from edgepack.core.disk import atomic
from edgepack.core.executor import Executor
from edgepack.core.progress import Steps
from edgepack.core.stage import Stage
from edgepack.core.untrusted import read_json
from edgepack.planning.plan import READS, Plan

WARNINGS = "warnings.json"


@dataclass(frozen=True)
class Check(Stage):
    """Reads every weight of a model once; its result is what is to be said of them."""

    original: Checkpoint

    name = STAGE
    code = ("edgepack.check.finite", *READS)

    @property
    def inputs(self) -> tuple[str, ...]:  # noqa: D102
        return (self.original.key,)

    def options(self) -> dict[str, Any]:  # noqa: D102
        return {}

    def run(self, folder: Path, executor: Executor) -> Steps[None]:  # noqa: D102
        found = yield from check_values(self.original)
        with atomic(folder / WARNINGS) as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")

    def memory(self) -> int:
        """The largest weight, as it is stored or as float32."""
        return max(4 * spec.numel for spec in self.original.specs.values())

    def warnings(self) -> list[str]:  # noqa: D102
        found: list[str] = read_json(self.folder / WARNINGS)
        return found


def join(plan: Plan) -> Plan:
    """The plan with this stage: every plan has it."""
    return plan.adding(Check(plan.original))
