"""The digest of code: arithmetic changes it, wherever it is imported from; words do not."""

import shutil
import textwrap

import pytest

from edgepack.core import fingerprint
from edgepack.planning import plan as planning
from edgepack.planning import source as shape

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
    "text": (shape.WRITES_TEXT, ["calibration.self_text", "decoder", "checkpoint.folder"]),
    "slice": (shape.SLICES, ["slicing.basis", "decoder", "checkpoint.gguf_file"]),
    "rft": (shape.FINETUNES, ["recover.adam", "recover.student", "slicing.sliced"]),
    "calibrate": (planning.CALIBRATES, ["calibration.moments", "architectures.llama"]),
    "allocate": (planning.ALLOCATES, ["decompose.ldlq", "formats._scale_kernels", "formats.q4_0"]),
    "decompose": (planning.DECOMPOSES, ["decompose.caldera", "formats._codebook_kernels"]),
    "recover": (planning.RECOVERS, ["recover.training", "formats.q8_0", "decoder"]),
}


@pytest.mark.parametrize("stage", COMPUTES)
def test_stages_see_the_code_that_makes_them_and_no_words(stage):
    modules, wanted = COMPUTES[stage]
    found = fingerprint.covered(modules)
    assert {f"edgepack.{name}" for name in wanted} <= found.keys()
    assert not {"edgepack.core.errors", "edgepack.cli", "edgepack.report.page"} & found.keys()
