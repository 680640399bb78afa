"""The page in Chromium as the app shows it: the app's origin and policy, its host, the programs.

``EDGEPACK_NODE`` names a folder where npm installed playwright-core.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.android.host import JAVA, PROJECT, programs
from tests.demo.acting import Person
from tests.demo.browsing import browsing

pytestmark = [pytest.mark.llama, pytest.mark.slow]
WRAPPER = Path(__file__).with_name("app.js")


def served() -> dict[str, object]:
    """What Page.java says of origin, policy and types."""
    text = (JAVA / "demo/Page.java").read_text()
    texts = dict(re.findall(r'static final String (\w+) = ((?:"[^"]*"[\s+]*)+);', text))
    plain = {key: "".join(re.findall(r'"([^"]*)"', value)) for key, value in texts.items()}
    words = re.findall(r'"([^"]*)"', text.split("TYPES = {")[1].split("};")[0])
    return {
        "origin": f"https://{plain['HOST']}",
        "policy": plain["POLICY"],
        "types": dict(zip(words[::2], words[1::2], strict=True)),
        "folder": str(PROJECT.parent / "edgepack/demo/page"),
    }


@pytest.fixture
def app(classes, base, tmp_path):
    """A person who has opened the app, with a model to choose."""
    there = programs(tmp_path / "programs")
    command = ["java", "-cp", classes, "org.edgepack.host.Desktop", there]
    command += [tmp_path / "cpuinfo", tmp_path / "files"]
    with browsing() as browser:
        browser.run(
            WRAPPER.read_text(),
            command=list(map(str, command)),
            models=[str(base.folder / name) for name in (*base.files, "manifest.json")],
            **served(),
        )
        yield Person(browser)
        browser.run("await globalThis.end()")


@contextmanager
def clean(person):
    """Nothing that the page did was refused, by its policy or the app."""
    yield
    assert person.browser.problems == []
    assert person.run("return globalThis.refused") == []


def answers(person, count):
    """Wait for so many whole answers: by a selector, as the policy lets nobody evaluate texts."""
    code = "await page.locator('.theirs:not(.writing)').nth(values.last).waitFor()"
    person.run(code, last=count - 1)
    return person.reads_all(".theirs .text")


def imports(person):
    person.sees(".empty.first button")
    person.click(".empty.first button")
    person.sees(".card.chosen")


def test_a_model_is_imported_and_chats(app):
    with clean(app):
        imports(app)
        app.go("chat")
        app.asks("w1 w2")
        answers(app, 1)
        assert "tokens/s" in app.reads(".stats")
        app.reload()
        app.go("models")
        app.sees(".card.chosen")


def test_a_worker_that_dies_is_told_and_the_page_goes_on(app):
    imports(app)
    app.go("chat")
    app.asks("w1 w2")
    answers(app, 1)
    found = [
        one
        for one in psutil.Process().children(recursive=True)
        if "libedgepack-chat" in " ".join(one.cmdline())
    ]
    worker = min(found, key=lambda one: one.create_time())  # it has a process for templates
    worker.kill()
    app.asks("w3")
    answers(app, 2)


def test_a_file_of_another_app_is_offered(app, base):
    imports(app)
    app.run("globalThis.act('offer', values.files)", files=[str(base.folder / "base.gguf")])
    app.sees("dialog[open], .sheet")
    assert "base.gguf" in app.reads("dialog[open], .sheet")


def test_other_addresses_are_refused(app):
    imports(app)
    found = app.run(
        "return page.evaluate("
        "() => fetch('https://example.com/x').then(() => 'reached', () => 'no'))"
    )
    assert found == "no"
    assert app.run("return globalThis.refused") == []  # its policy did, before the app was asked
