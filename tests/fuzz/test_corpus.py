"""Inputs that once failed are read, or refused in one line that says what to do. (Those of readers
that need a whole case are read in `test_fuzz`, before its mutated ones.)"""

import pytest

from tests.fuzz import corpus
from tests.fuzz.harness import GOOD, judged
from tests.fuzz.parsers import PARSERS
from tests.fuzz.readers import READERS

KEPT = [(name, path) for name in PARSERS for path in corpus.files_of(name)]
MOST = 1 << 20
"""Bytes of all of them: this is a repository of code."""


@pytest.mark.parametrize(("name", "path"), KEPT, ids=lambda value: getattr(value, "name", value))
def test_what_once_failed_is_read_or_refused(name, path, tmp_path):
    outcome, detail = judged(lambda: PARSERS[name].parse(path.read_bytes(), tmp_path))
    assert outcome in GOOD, detail


def test_every_kept_input_is_of_a_reader():
    named = {corpus.folder_of(name) for name in READERS}
    folders = [path for path in corpus.HERE.iterdir() if path.is_dir() and path.name[0] != "_"]
    assert folders
    assert set(folders) <= named
    for name, reader in READERS.items():
        kept = corpus.cases_of(name) if name in PARSERS else corpus.files_of(name)
        assert not kept, f"{reader.name}: a parser keeps files, any other reader folders"


def test_the_corpus_is_small():
    assert sum(path.stat().st_size for path in corpus.HERE.rglob("*") if path.is_file()) < MOST
