"""The digest of code: arithmetic changes it, wherever it is imported from; words do not."""

import shutil
import textwrap

import pytest

from edgepack.allocate.stage import Allocate
from edgepack.calibration.stage import Calibrate
from edgepack.calibration.text_stage import WriteText
from edgepack.core import fingerprint
from edgepack.decompose.stage import Decompose
from edgepack.recover.sliced import FineTune
from edgepack.recover.stage import Recover
from edgepack.slicing.stage import Slice

HELPER = '''
"""What the helper does."""

def double(x):
    """Twice."""
    # a comment
    if x < 0:
        raise ValueError("below zero")
    return 2 * x
'''
STAGE = """
from edgepack.calibration.helper import double

def stage(x):
    return double(x) + 1
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A package of two modules in edgepack's place; the digest of the first after a change."""
    home = tmp_path / "edgepack"
    (home / "calibration").mkdir(parents=True)
    monkeypatch.setattr(fingerprint, "HOME", home)

    def digest(helper: str = HELPER, stage: str = STAGE, module: str = "edgepack.stage") -> str:
        fingerprint._read.cache_clear()
        fingerprint.digest.cache_clear()
        (home / "stage.py").write_text(textwrap.dedent(stage))
        (home / "calibration" / "helper.py").write_text(textwrap.dedent(helper))
        return fingerprint.digest(module)

    yield digest
    fingerprint._read.cache_clear()
    fingerprint.digest.cache_clear()
    shutil.rmtree(home)


WORDS = {
    "comment": ("# a comment", "# another"),
    "docstring": ("Twice.", "Two times."),
    "title": ("What the helper does", "What it is for"),
    "error": ("below zero", "must not be negative"),
    "blank lines": ("def double", "\n\ndef double"),
}


@pytest.mark.parametrize("what", WORDS)
def test_words_do_not_change_it(code, what):
    old, new = WORDS[what]
    assert old in HELPER
    assert code(helper=HELPER.replace(old, new)) == code()


@pytest.mark.parametrize(
    "change", [("2 * x", "3 * x"), ("x < 0", "x <= 0"), ("double(x)", "double(y)")]
)
def test_arithmetic_changes_it_even_in_a_module_that_is_imported(code, change):
    old, new = change
    before = code()
    assert code(helper=HELPER.replace(old, new), stage=STAGE.replace(old, new)) != before


def test_a_package_stands_for_all_its_modules(code):
    before = code(module="edgepack.calibration")
    assert code(helper=HELPER.replace("2 *", "3 *"), module="edgepack.calibration") != before


COMPUTES = {
    WriteText: ["calibration.self_text", "model.decoder", "checkpoint.folder"],
    Slice: ["slicing.basis", "model.decoder", "checkpoint.gguf_file"],
    FineTune: ["recover.adam", "recover.student", "model.sliced"],
    Calibrate: ["calibration.moments", "architectures.llama"],
    Allocate: ["decompose.ldlq", "formats._scale_kernels", "formats.q4_0"],
    Decompose: ["decompose.caldera", "formats._codebook_kernels"],
    Recover: ["recover.training", "formats.q8_0", "model.decoder"],
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", COMPUTES, ids=lambda stage: stage.name)
def test_stages_see_the_code_that_makes_them_and_no_words(stage):
    found = fingerprint.covered_code(stage.code)
    assert {f"edgepack.{name}" for name in COMPUTES[stage]} <= found.keys()
    assert not {"edgepack.errors", "edgepack.cli", "edgepack.report.page"} & found.keys()
