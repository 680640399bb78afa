"""Plug-ins of other packages: found by name, for every kind, and refused by name."""

from __future__ import annotations

import pytest

from edgepack.core import fingerprint, plugins
from edgepack.errors import EdgepackError, RecipeError
from tests.support.outside import on_path, write_package

KINDS = ["architectures", "devices", "formats", "targets"]
MODULE = "class Mine:\n    name = {name!r}\n\n\nPLUGIN = Mine\n"


def outsider(site, kind, name="mine", *, entry=None, package="extra", text=MODULE):
    """A package with one plug-in; `entry` is what its entry point says, if not the truth."""
    files = {f"{package}/__init__.py": "", f"{package}/{name}.py": text.format(name=name)}
    value = entry or f"{package}.{name}:PLUGIN"
    write_package(site, f"edgepack-{package}", files, {f"edgepack.{kind}": {name: value}})


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_takes_plug_ins_of_other_packages(kind, tmp_path):
    before = plugins.names(kind)
    assert before == tuple(sorted(before))
    outsider(tmp_path, kind, "a_mine")
    with on_path(tmp_path):
        assert plugins.names(kind) == (*before, "a_mine")  # what is built in comes first
        found = plugins.find(kind, "a_mine")
        assert (found.name, found.__module__) == ("a_mine", "extra.a_mine")
        assert plugins.module(kind, "a_mine") == "extra.a_mine"
    assert plugins.names(kind) == before
    with pytest.raises(RecipeError, match="there is no 'a_mine'"):
        plugins.find(kind, "a_mine")


@pytest.mark.parametrize("kind", KINDS)
def test_every_built_in_plug_in_has_its_file_s_name(kind):
    for name in plugins.names(kind):
        assert plugins.find(kind, name).name == name
        assert plugins.module(kind, name) == f"edgepack.{kind}.{name}"


def refused(name="mine", kind="formats"):
    with pytest.raises(EdgepackError) as error:
        plugins.find(kind, name)
    assert "\n" not in str(error.value)
    return f"{error.value} | {error.value.hint}"


def test_a_name_that_is_taken_is_refused(tmp_path):
    outsider(tmp_path, "formats", "q4_0")
    with on_path(tmp_path):
        said = refused("q4_0")
        assert "q4_0 is built in, and the package edgepack-extra has another" in said
        assert plugins.names("formats").count("q4_0") == 1


def test_two_packages_with_one_name_are_refused(tmp_path):
    outsider(tmp_path, "formats")
    outsider(tmp_path, "formats", package="other")
    with on_path(tmp_path):
        said = refused()
        assert "edgepack-extra" in said
        assert "edgepack-other" in said


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"entry": "extra.gone:PLUGIN"}, "No module named 'extra.gone'"),
        ({"entry": "extra.mine:GONE"}, "has no attribute 'GONE'"),
        ({"text": "import no_such_library\n"}, "No module named 'no_such_library'"),
        ({"text": MODULE.replace("{name!r}", "'yours'")}, "calls itself 'yours', not 'mine'"),
        ({"text": "PLUGIN = object()\n"}, "calls itself None, not 'mine'"),
    ],
)
def test_a_broken_plug_in_is_named_with_its_package(change, why, tmp_path):
    outsider(tmp_path, "formats", **change)
    with on_path(tmp_path):
        said = refused()
    assert why in said
    assert "the package edgepack-extra" in said


# ---------------------------------------------------------------------------- digests of code

PACKAGE = {
    "extra/__init__.py": "",
    "extra/mine.py": "import extra.whole\nfrom extra.helper import f\n\nclass PLUGIN:\n"
    "    name = 'mine'\n",
    "extra/helper.py": "from .deep import near\n\ndef f():\n    return near.g()\n",
    "extra/whole.py": "A = 1\n",
    "extra/deep/__init__.py": "from . import near\n",
    "extra/deep/near.py": "from ..other import h\nfrom edgepack.core.linalg import damp\n",
    "extra/other.py": "def h():\n    return 1\n",
    "extra/unrelated.py": "B = 1\n",
}
NOT_IMPORTED = ("extra/unrelated.py", "extra/__init__.py")


def digest(site, files):
    for path, text in files.items():
        (site / path).write_text(text)
    with on_path(site):
        return fingerprint.digest("extra.mine")


@pytest.mark.slow
@pytest.mark.parametrize("file", PACKAGE)
def test_a_plug_in_s_digest_covers_what_it_imports_of_its_package(file, tmp_path):
    write_package(tmp_path, "extra", PACKAGE, {"edgepack.formats": {"mine": "extra.mine:PLUGIN"}})
    with on_path(tmp_path):
        before = fingerprint.digest("extra.mine")
        every = fingerprint.digest("edgepack.formats")
        covered = fingerprint.covered_code(("extra.mine",))
    assert "edgepack.core.linalg" in covered
    assert digest(tmp_path, {file: "# a comment\n" + PACKAGE[file]}) == before
    changed = digest(tmp_path, {file: PACKAGE[file] + "\nMORE = 1\n"})
    assert (changed == before) == (file in NOT_IMPORTED)
    with on_path(tmp_path):  # formats are read by every stage that packs
        assert (fingerprint.digest("edgepack.formats") == every) == (changed == before)


def test_a_package_stands_for_all_of_its_modules_elsewhere_too(tmp_path):
    write_package(tmp_path, "extra", PACKAGE, {})
    with on_path(tmp_path):
        found = fingerprint.covered_code(("extra",))
    assert {"extra.mine", "extra.unrelated", "extra.deep.near"} <= found.keys()
    assert not any(name.startswith("extra") and "pipeline" in name for name in found)


def test_a_package_of_one_module_has_a_digest(tmp_path):
    entry = {"edgepack.formats": {"mine": "single:PLUGIN"}}
    write_package(tmp_path, "single", {"single.py": "import single\nA = 1\n"}, entry)
    with on_path(tmp_path):
        before = fingerprint.digest("single")
        assert fingerprint.covered_code(("single",)).keys() == {"single"}
    (tmp_path / "single.py").write_text("import single\nA = 2\n")
    with on_path(tmp_path):
        assert fingerprint.digest("single") != before
