"""Results beside those of mergekit 0.1.5, which `benchmarks/merge_parity.py` made on random
tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.merge_parity import INPUTS, about, merge_ours, stored
from edgepack.merge import methods

GOLDEN = Path(__file__).parent / "golden"
KARCHER = 1e-6
"""Inner products are float64 here and float32 in mergekit; the tensors are around 1."""
OTHER_CPU = 1e-6
"""torch adds in another order where vectors of the CPU are shorter."""


def test_every_method_has_them():
    with_vectors = {path.stem for path in GOLDEN.glob("*.safetensors")} - {Path(INPUTS).stem}
    built_in = {path.stem for path in Path(methods.__file__).parent.glob("[!_]*.py")} - {"base"}
    assert with_vectors == built_in


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("[!i]*.safetensors")))
def test_equals_mergekit(name):
    same_cpu = about(GOLDEN / INPUTS)["cpu"] == torch.backends.cpu.get_cpu_capability()
    tolerance = KARCHER if name == "karcher" else 0 if same_cpu else OTHER_CPU
    merges = 0
    for case, tensors, theirs, masks in stored(GOLDEN, name):
        ours = merge_ours(case, tensors, masks)
        assert (ours - theirs).abs().max() <= tolerance, case
        merges += 1
    assert merges > 0
