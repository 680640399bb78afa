"""What is in the keys of stages."""

from __future__ import annotations

from benchmarks.mutants._base import Groups

GROUPS: Groups = {
    ("decompose/stage.py", "tests/planning/test_keys.py"): {
        "decompose without the damping": ('            "damping": list(self.damping),\n', ""),
        "decompose without the iterations": ('            "iterations": self.iterations,\n', ""),
        "decompose without what it was calibrated on": (
            "return (self.calibration.key if self.calibration else self.model.key,)",
            "return (self.model.key,)",
        ),
        "decompose without the formats": (
            '"formats": {name: vars(fmt) for name, fmt in self.chosen.formats.items()},',
            '"formats": list(self.chosen.formats),',
        ),
    },
    ("calibration/stage.py", "tests/planning/test_keys.py"): {
        "calibrate without its text": (
            "return (self.model.key, self.text.key)",
            "return (self.model.key,)",
        ),
        "calibrate without its model": (
            "return (self.model.key, self.text.key)",
            "return (self.text.key,)",
        ),
        "calibrate without its options": (
            'return self.calibrate.model_dump() | {"source": source}',
            "return {}",
        ),
    },
    ("calibration/text_stage.py", "tests/planning/test_keys.py"): {
        "the text without its options": ("return text_options(self.calibrate)", "return {}"),
        "the text without its model": ("return (self.original.key,)", "return ()"),
    },
    ("recover/stage.py", "tests/planning/test_keys.py"): {
        "recover without what it starts from": (
            "return (self.decomposed.key, self.calibration.key, *own)",
            "return (self.calibration.key, *own)",
        ),
        "recover without its options": (
            "return self.recover.model_dump() | dict(self.arithmetic)",
            "return dict(self.arithmetic)",
        ),
    },
    ("allocate/stage.py", "tests/planning/test_keys.py"): {
        "allocate without what it tries": ("return asdict(self.tried)", "return {}"),
        "allocate without what it was calibrated on": (
            "return (self.calibration.key,)",
            "return (self.model.key,)",
        ),
    },
    ("slicing/stage.py", "tests/planning/test_keys.py"): {
        "the slice without its text": (
            "return (self.original.key, self.text.key)",
            "return (self.original.key,)",
        ),
        "the slice without its widths": ('"widths": list(self.widths),', '"widths": [],'),
        "the slice without its seed": (
            'OPTIONS = {"method", "covariance", "orientation", "seed", "slice_head"}',
            'OPTIONS = {"method", "covariance", "orientation", "slice_head"}',
        ),
    },
    ("recover/sliced.py", "tests/planning/test_keys.py"): {
        "fine-tuning without the slice": (
            "return (self.sliced.stage.key, self.original.key, self.text.key)",
            "return (self.original.key, self.text.key)",
        ),
    },
    ("core/stage.py", "tests/core/test_stage.py tests/planning/test_keys.py"): {
        "keys without inputs": (
            "content = [self.name, code, self.options(), list(self.inputs)]",
            "content = [self.name, code, self.options()]",
        ),
        "keys without options": (
            "content = [self.name, code, self.options(), list(self.inputs)]",
            "content = [self.name, code, list(self.inputs)]",
        ),
    },
}
