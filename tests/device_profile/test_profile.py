"""A device profile is what `edgepack bench` wrote, or one line says what is wrong with it."""

from __future__ import annotations

import pytest

from edgepack.core.speeds import About
from edgepack.device_profile.profile import read_profile
from edgepack.errors import EdgepackError
from tests.support.profiles import DEVICE, content, model, product, products, timing, write


def read(tmp_path, found):
    return read_profile(write(tmp_path / "bench.json", found))


def changed(*keys, value):
    """A profile with another value at a place; None removes it."""
    found = content()
    inner = found
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    if value is None:
        del inner[keys[-1]]
    return found


BAD = {
    "a list": ([1], "is no bench.json"),
    "another file": ({"schema_version": 1}, "is no bench.json"),
    "a manifest": ({"edgepack": "0.1.0", "files": {}}, "is no bench.json"),
    "another schema": (changed("schema_version", value=2), "has schema 2, and this .* reads 1"),
    "no products": (changed("ceilings", "products", value=[]), "has no times of products"),
    "no memory": (
        changed("ceilings", "memory", value=[]),
        "has no times of products and of memory",
    ),
    "no device": (changed("device", value=None), "device is missing"),
    "no cores": (changed("device", "cores", value=0), "device.cores: .*greater than or equal to 1"),
    "no time at all": (
        changed("ceilings", "products", 0, "seconds", value=[0.0]),
        "ceilings.products.0.seconds.0: .*greater than",
    ),
    "a weight without bits": (
        changed("ceilings", "products", 0, "rows", value=0),
        "ceilings.products.0.rows: .*greater than",
    ),
    "other threads": (
        content(models=[model({"types": {"q8_0": 1}}, timing("decode", 8, 1.0, threads=3))]),
        "no product was timed with 3 threads",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_profile_is_refused_in_one_line(what, tmp_path):
    found, message = BAD[what]
    with pytest.raises(EdgepackError, match=message) as refused:
        read(tmp_path, found)
    assert refused.value.message.startswith(f"--device-profile: {tmp_path}")
    assert refused.value.hint


def test_a_file_that_is_not_there_or_no_json_is_refused(tmp_path):
    with pytest.raises(EdgepackError, match="no such file"):
        read_profile(tmp_path)
    (tmp_path / "bench.json").write_text("{")
    with pytest.raises(EdgepackError, match="is not valid JSON"):
        read_profile(tmp_path)


def test_a_folder_stands_for_the_file_in_it(tmp_path):
    assert read(tmp_path, content()) == read_profile(tmp_path)


def test_the_threads_are_those_that_decode_fastest(tmp_path):
    both = products({"f32": 0.2, "q8_0": 0.05}, threads=2)
    assert read(tmp_path, content(more=both)).threads == 2
    slow = [timing("decode", 8, 1.0), timing("decode", 8, 2.0, threads=2)]
    run = model({"types": {"q8_0": 1}}, *slow)
    assert read(tmp_path, content(more=both, models=[run])).threads == 1
    deep = model({"types": {"q8_0": 1}}, timing("decode", 8, 9.0, depth=64))
    assert read(tmp_path, content(more=both, models=[deep])).threads == 2
    graph = model({"types": {"onnx": 1}}, *slow)
    assert read(tmp_path, content(more=both, models=[graph])).threads == 2


TIMES = {"q8_0": 0.1, "q5_0": 0.105, "q4_0": 0.05, "q2_0": 0.5}


def test_a_type_is_slow_beside_larger_ones_only(tmp_path):
    profile = read(tmp_path, content(TIMES))
    name, ratio = profile.faster("q2_0", list(TIMES))
    assert (name, ratio) == ("q4_0", pytest.approx(10))
    name, ratio = profile.faster("q2_0", ["q8_0", "q5_0"])
    assert (name, ratio) == ("q8_0", pytest.approx(5))
    assert profile.faster("q5_0", list(TIMES)) is None, "5 % are no difference"
    assert profile.faster("q8_0", list(TIMES)) is None, "q4_0 is smaller"
    assert profile.faster("q4_0", list(TIMES)) is None
    assert profile.faster("iq3_s", list(TIMES)) is None
    assert profile.faster("q2_0", ["iq3_s"]) is None


def test_a_type_is_slow_only_if_it_is_so_in_every_round(tmp_path):
    found = content({"q8_0": 0.1, "q4_0": 0.2})
    q4_0 = next(p for p in found["ceilings"]["products"] if p["type"] == "q4_0")
    assert read(tmp_path, found).faster("q4_0", ["q8_0"]) == ("q8_0", pytest.approx(2))
    q4_0["seconds"][0] /= 2.1
    assert read(tmp_path, found).faster("q4_0", ["q8_0"]) is None


def test_a_type_counts_as_timed_if_both_products_are(tmp_path):
    one = product("q6_k", 0.1)
    profile = read(tmp_path, content(TIMES, more=[one]))
    assert profile.untimed(["q8_0", "q6_k", "iq3_s"]) == ["iq3_s", "q6_k"]


def test_a_device_is_the_same_whatever_memory_is_free():
    own = About.model_validate(DEVICE)
    assert own.is_same(About.model_validate(DEVICE | {"memory": 5}))
    for key, value in (("name", "ssh"), ("model", "Phone 2"), ("machine", "x"), ("cores", 4)):
        assert not own.is_same(About.model_validate(DEVICE | {key: value}))
    assert str(own) == "adb, Phone 1, aarch64, 8 cores"
