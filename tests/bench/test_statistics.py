"""Medians, paired ratios and trends, checked against what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack.bench.statistics import change, paired_ratio, spread


def test_what_slows_both_of_a_pair_down_cancels():
    busy = [1, 7, 1, 1, 30, 1, 1]
    found = paired_ratio([2.0 * slow for slow in busy], [1.0 * slow for slow in busy])
    assert (found.median, found.low, found.high) == (2, 2, 2)


def test_few_pairs_cover_less_and_say_so():
    found = paired_ratio([1, 2, 3], [1, 1, 1])
    assert (found.low, found.high) == (1, 3)
    assert found.coverage == pytest.approx(0.75)


@pytest.mark.parametrize("count", [5, 6, 9, 15, 40])
def test_the_interval_holds_the_true_median_as_often_as_it_says(count):
    draws = np.random.default_rng(count).lognormal(size=(4000, count))
    found = [paired_ratio(row.tolist(), [1.0] * count) for row in draws]
    share = np.mean([one.low <= 1 <= one.high for one in found])  # the true median is e^0
    assert share == pytest.approx(found[0].coverage, abs=0.015)
    assert found[0].coverage >= 0.95 or count < 6


def test_the_interval_is_the_narrowest_that_covers_enough():
    ratios = list(range(1, 10))  # k = 2 of 9 covers 96.1 %, k = 3 only 82 %
    found = paired_ratio(ratios, [1] * 9)
    assert (found.low, found.high) == (2, 8)
    assert str(found) == "5.000 [2.000, 8.000]"


def test_spread_is_half_of_the_middle_half():
    assert spread([90, 95, 100, 105, 110]) == pytest.approx(0.05)
    assert spread([3.0]) == 0


def test_a_device_that_grows_slower_is_noticed_whatever_its_cases():
    steady = [[1.0] * 9, [50.0, 51, 49] * 3]
    assert abs(change(steady)) < 0.03
    assert change([[1, 1, 1, 1.1, 1.1, 1.1, 1.3, 1.3, 1.3]] * 2) == pytest.approx(0.3)
    assert change([]) == 0
