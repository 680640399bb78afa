"""The processor's energy counters, as Linux lays them out."""

from __future__ import annotations

import pytest

from edgepack.bench.energy import meter


def count(domains, name, microjoules, most=1_000_000):
    folder = domains / name
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")


def test_packages_are_added_up_and_their_parts_are_not(tmp_path):
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0", "intel-rapl-mmio:0"):
        count(tmp_path, name, 100)
    found = meter(tmp_path)
    assert found.joules() == 0
    for name in ("intel-rapl:0", "intel-rapl:0:0"):
        count(tmp_path, name, 400)
    count(tmp_path, "intel-rapl:1", 250)
    assert found.joules() == pytest.approx(450e-6)


def test_a_counter_that_begins_again_goes_on(tmp_path):
    count(tmp_path, "intel-rapl:0", 900_000)
    found = meter(tmp_path)
    count(tmp_path, "intel-rapl:0", 50_000)
    assert found.joules() == pytest.approx(0.15)
    count(tmp_path, "intel-rapl:0", 60_000)
    assert found.joules() == pytest.approx(0.16)


def test_where_there_is_none_nothing_is_said(tmp_path):
    assert meter(tmp_path / "nowhere") is None
    assert meter(tmp_path) is None
    count(tmp_path, "intel-rapl:0", "none of your business")
    assert meter(tmp_path) is None
