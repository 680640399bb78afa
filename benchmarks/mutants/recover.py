"""Distillation: Adam and its loop."""

from __future__ import annotations

from benchmarks.mutants._base import Groups

GROUPS: Groups = {
    ("recover/adam.py", "tests/recover/test_adam.py"): {
        "the mean is not corrected for its start": (
            "mean = self.first / (1 - FIRST ** (step + 1))",
            "mean = self.first",
        ),
        "the square is not corrected for its start": (
            "square = self.second / (1 - SECOND ** (step + 1))",
            "square = self.second",
        ),
        "corrections are a step late": (
            "mean = self.first / (1 - FIRST ** (step + 1))",
            "mean = self.first / (1 - FIRST ** (step + 2))",
        ),
        "both moments decay alike": (
            "self.second.lerp_(gradient.square(), 1 - SECOND)",
            "self.second.lerp_(gradient.square(), 1 - FIRST)",
        ),
        "no root of the square": ("(square.sqrt() + EPSILON)", "(square + EPSILON)"),
        "a factor's size is taken along the other side": (
            'mean(0 if part == "L" else 1, keepdim=True)',
            'mean(1 if part == "L" else 0, keepdim=True)',
        ),
        "small scales are moved by their own size only": (
            "return magnitude.maximum(magnitude.mean(1, keepdim=True) / 2)",
            "return magnitude",
        ),
        "the rate falls in a line": (
            "return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))",
            "return 1 - (step - warm) / max(1, steps - warm)",
        ),
        "no warm-up": ("return (step + 1) / warm", "return 1.0"),
    },
    ("recover/training.py", "tests/recover/test_adam.py"): {
        "gradients are not clipped": (
            "clip, rate = min(1.0, settings.clip / max(norm, 1e-30)), self.rate",
            "clip, rate = 1.0, self.rate",
        ),
        "gradients are not those of shares": (
            "gradient.mul_(sizes[key])  # with respect to relative changes of the part",
            "pass",
        ),
        "steps are not shares": (
            "reach = rate * settings.rate(part) * sizes[name, part]",
            "reach = rate * settings.rate(part)",
        ),
        "uphill": (
            "masters[name][part] -= reach * moments.update(clip * gradient, since)",
            "masters[name][part] += reach * moments.update(clip * gradient, since)",
        ),
        "corrections do not begin again after a setback": (
            "since = self.report.steps - max(self.report.setbacks, default=0)",
            "since = self.report.steps",
        ),
        "a setback slows nothing": (
            "return distance * planned / 3.0 ** len(report.setbacks)",
            "return distance * planned",
        ),
        "a setback is gone on from": (
            "            self.student.masters = _map(self.best, _copy)\n",
            "            pass\n",
        ),
        "moments outlive a setback": (
            "            self.first, self.second = (_map(self.best, _zeros) for _ in range(2))\n"
            "        if report",
            "        if report",
        ),
        "the distance to go does not matter": (
            "distance = min(1.0, math.sqrt(report.start))",
            "distance = 1.0",
        ),
        "norms learn at the rate of factors": (
            'return self.scales if part.startswith("Q.") else self.norms',
            'return self.scales if part.startswith("Q.") else self.factors',
        ),
    },
}
