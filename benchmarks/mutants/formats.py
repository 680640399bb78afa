"""The fit of scales."""

from __future__ import annotations

from benchmarks.mutants._base import Groups

GROUPS: Groups = {
    ("formats/_search.py", "tests/formats/test_search.py"): {
        "what overflows becomes infinite": (
            "return scale.clamp(-FP16_MAX, FP16_MAX).to(torch.float16).to(torch.float32)",
            "return scale.to(torch.float16).to(torch.float32)",
        ),
        "the reciprocal of nothing is infinite": (
            "return torch.where(scale.abs() < TINY, 0.0, scale.reciprocal())",
            "return scale.reciprocal()",
        ),
        "weights are not normalised": (
            "return torch.where(mean > TINY, w / mean.clamp_min(TINY), 1.0)",
            "return w",
        ),
        "a block without weights counts for nothing": (
            "return torch.where(mean > TINY, w / mean.clamp_min(TINY), 1.0)",
            "return torch.where(mean > TINY, w / mean.clamp_min(TINY), 0.0)",
        ),
        "the worst first": (
            "error, order = error.sort(dim=1)",
            "error, order = error.sort(dim=1, descending=True)",
        ),
        "fields keep their old order": (
            "return error, *(pick(values, order) for values in fields)",
            "return error, *fields",
        ),
        "ratios of nothing": (
            "return torch.where(b > TINY, a / b.clamp_min(TINY), 0.0)",
            "return a / b",
        ),
    },
    ("formats/_scale_kernels.py", "tests/formats/test_search.py"): {
        "scales are fitted without weights": (
            "            lx[k] += wx * level\n            ll[k] += wj * level * level",
            "            lx[k] += xj * level\n            ll[k] += level * level",
        ),
        "errors are counted without weights": (
            "            error[k] += wj * miss * miss",
            "            error[k] += miss * miss",
        ),
        "scales are not refitted": ("REFITS = 2", "REFITS = 0"),
        "the offset is not refitted to the rounded scale": (
            "d, m = _settled(xr, w, d, m, total, top)",
            "d, m = _half(d), _half(m)",
        ),
        "offsets above 0 though they are stored below": (
            "    if negative and offset > 0:\n        return _ratio(qx + mean * q1, qq), ZERO\n",
            "",
        ),
    },
}
