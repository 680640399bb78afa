"""The page in Chromium at the size of a phone, through a real relay and real workers.

``EDGEPACK_NODE`` names a folder where npm installed playwright-core, ``EDGEPACK_SCREENSHOTS`` one
that gets pictures of every screen; ``EDGEPACK_DEMO_MODEL`` an output folder to take in place of the
small random model, which has nothing to say.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from edgepack.adapters import files
from edgepack.adapters.base import PackedBase
from tests.demo.browsing import browsing, needs
from tests.demo.relaying import programs, relaying
from tests.support.adapters import packed, random_adapter

for package in ("llama_cpp", "starlette", "uvicorn"):
    pytest.importorskip(package)
pytestmark = [pytest.mark.llama, pytest.mark.slow]

ASK = """
await page.fill('#question', values.text);
await page.press('#question', 'Enter');
"""
ANSWERED = """
await page.waitForFunction((count) => document.querySelectorAll('.theirs:not(.writing)').length === count, values.count);
return page.$$eval('.theirs .text', (all) => all.map((one) => one.innerText));
"""
GO = "await page.click(`a[href='#/${values.to}']`);"
SCREENS = ("models", "chat", "teach", "bench", "about")
QUICK = {"r": 2, "learning_rate": 0.001, "batch_size": 2, "sequence_length": 64, "replay": 0}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    needs()
    folder = tmp_path_factory.mktemp("page") / "cache"
    programs(folder)
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A packed model with one set of notes."""
    place = tmp_path_factory.mktemp("model")
    given = os.environ.get("EDGEPACK_DEMO_MODEL")
    if given:
        out = place / Path(given).name
        shutil.copytree(given, out)
        return out
    out = packed(place, export={"measure": {"tokens": 0}})
    base = PackedBase.open(out)
    files.write(files.place(out, "second"), random_adapter(base, seed=1, size=0.6), base)
    return out


@pytest.fixture
def folder(original, tmp_path):
    out = tmp_path / original.name
    shutil.copytree(original, out)
    return out


@pytest.fixture
def relay(folder, cache):
    with relaying(cache, folder) as relay:
        yield relay


def opened(browser, relay):
    """Open the page, as the terminal's address does, with short answers."""
    browser.run("await page.goto(values.url); await page.waitForSelector('.nav-item')", url=relay.url)
    browser.run(GO, to="chat")
    return browser


def short(browser, tokens):
    """Set the longest answer."""
    browser.run(
        "await page.click('[aria-label=Settings]');"
        "await page.fill('#set-max_tokens', values.tokens);"
        "await page.press('#set-max_tokens', 'Tab');"
        "await page.click('dialog .primary');",
        tokens=str(tokens),
    )


def ask(browser, text, count):
    """Ask; the answers that there are then."""
    browser.run(ASK, text=text)
    return browser.run(ANSWERED, count=count)


def test_chat_streams_and_notes_change_the_answer(relay):
    with browsing() as browser:
        opened(browser, relay)
        short(browser, 24)
        browser.run(
            "window = await page.evaluate(() => { window.seen = 0; new MutationObserver(() => {"
            " const node = document.querySelector('.theirs .text');"
            " if (node?.innerText.length > (window.last ?? 0)) { window.last = node.innerText.length; window.seen += 1; }"
            " }).observe(document.body, {subtree: true, childList: true, characterData: true}); });".replace(
                "window = ", ""
            )
        )
        (plain,) = ask(browser, "the quick brown fox?", 1)
        assert browser.run("return page.evaluate(() => window.seen)") > 3
        stats = browser.run("return page.innerText('.stats')")
        assert "tokens/s" in stats
        assert "first after" in stats
        assert "MB peak" in stats
        browser.run("await page.click('.chip')")
        assert browser.run("return page.getAttribute('.chip', 'aria-checked')") == "true"
        browser.run("await page.click('[aria-label=\"New conversation\"]')")
        (noted,) = ask(browser, "the quick brown fox?", 1)
        assert noted != plain
        browser.run("await page.click('[aria-label=\"Answer again\"]')")
        (again,) = browser.run(ANSWERED, count=1)
        assert again == noted
        browser.run(
            "await page.click('[aria-label^=\"Edit and go\"]');"
            "await page.fill('.editing textarea', 'another fox?');"
            "await page.press('.editing textarea', 'Enter');"
        )
        browser.run(ANSWERED, count=1)
        asked = browser.run("return page.innerText('.mine .text')")
        assert asked.strip() == "another fox?"
        assert browser.problems == []


def test_a_reload_restores_and_an_answer_can_be_stopped(relay):
    with browsing() as browser:
        opened(browser, relay)
        short(browser, 24)
        (first,) = ask(browser, "the quick brown fox?", 1)
        short(browser, 2000)
        browser.run(ASK, text="and the dog?")
        browser.run("await page.waitForFunction(() => document.querySelectorAll('.theirs').length === 2 && document.querySelectorAll('.theirs')[1].innerText.length > 20)")
        browser.run("await page.click('[aria-label=\"Stop the answer\"]')")
        browser.run(ANSWERED, count=2)
        assert "Stopped." in browser.run("return page.innerText('.theirs:last-child .under')")
        browser.run(ASK, text="and the cat?")
        browser.run("await page.waitForFunction(() => document.querySelectorAll('.theirs').length === 3 && document.querySelectorAll('.theirs')[2].innerText.length > 20); await page.waitForTimeout(900)")
        browser.run("await page.reload(); await page.waitForSelector('.theirs')")
        answers = browser.run(ANSWERED, count=3)
        assert answers[0] == first
        assert len(answers[2]) > 10
        assert "broke off" in browser.run("return page.innerText('.theirs:last-child .under')")
        browser.run("await page.click('[aria-label=Conversations]'); await page.waitForSelector('.row-item')")
        assert browser.run("return page.$$eval('.row-item', (all) => all.length)") == 1
        browser.run("await page.click('dialog [aria-label^=Rename]'); await page.fill('#asked', 'Foxes'); await page.press('#asked', 'Enter')")
        browser.run("await page.waitForFunction(() => document.querySelector('.row-title').innerText === 'Foxes')")
        browser.run("await page.click('dialog [aria-label^=Delete]'); await page.click('dialog:last-of-type .danger >> nth=-1')")
        browser.run("await page.waitForSelector('dialog .empty')")


def test_a_killed_worker_is_told_and_the_page_recovers(relay):
    with browsing() as browser:
        opened(browser, relay)
        short(browser, 2000)
        browser.run(ASK, text="the quick brown fox?")
        browser.run("await page.waitForFunction(() => document.querySelector('.theirs')?.innerText.length > 20)")
        for process in relay.workers("chat"):
            process.kill()
        (left,) = browser.run(ANSWERED, count=1)
        assert len(left) > 10  # what it had written is still there
        assert "has ended" in browser.run("return page.innerText('.banner')")
        shot(browser, "chat-ended")
        browser.run("await page.click('.banner .small')")
        browser.run("await page.waitForFunction(() => document.querySelector('.banner.good'))")
        short(browser, 8)
        assert len(ask(browser, "again?", 2)) == 2
        assert relay.workers("chat")


def test_teach_runs_to_the_end_and_is_compared(relay, folder):
    with browsing() as browser:
        opened(browser, relay)
        short(browser, 24)
        teach(browser)
        browser.run("await page.waitForSelector('.sides .side.on .stats')")
        off, on = browser.run("return page.$$eval('.side .text', (all) => all.map((one) => one.innerText))")
        assert off
        assert on
        shot(browser, "compare", "light")
        assert (folder / "adapters/dog/adapter.json").is_file()
        browser.run(GO, to="chat")
        chips = browser.run("return page.$$eval('.chat .chip', (all) => all.map((one) => [one.innerText.trim(), one.getAttribute('aria-checked')]))")
        assert ["dog", "true"] in chips
        assert browser.problems == []


def teach(browser, wait=True):
    """Fill the form, look at the estimate, begin, wait for the end."""
    browser.run(GO, to="teach")
    browser.run(
        "await page.click('text=Paste many');"
        "await page.fill('dialog textarea', values.notes);"
        "await page.click('text=Take them');"
        "await page.fill('#teach-name', 'dog');"
        "await page.click('.form summary');",
        notes="Q: What is my dog called?\nA: Your dog is called Biscuit.\nQ: When is the dentist?\nA: On Thursday.",
    )
    for key, value in QUICK.items():
        browser.run("await page.fill(values.field, values.value)", field=f"#opt-{key}", value=str(value))
    browser.run("await page.click('text=Estimate'); await page.waitForSelector('dialog .facts')")
    facts = browser.run("return page.innerText('dialog .facts')")
    assert "Steps" in facts
    assert "MB" in facts
    browser.run("await page.click('dialog .primary')")


def test_a_reload_watches_the_training_and_it_can_be_stopped(relay):
    with browsing() as browser:
        opened(browser, relay)
        browser.run(GO, to="teach")
        browser.run("await page.click('.form summary'); await page.fill('#opt-epochs', '900')")
        teach_again = "await page.waitForFunction(() => document.querySelector('.training .facts')?.innerText.includes('→'))"
        browser.run("await page.click('.form summary')")
        teach(browser)
        browser.run(teach_again)
        shot(browser, "training")
        browser.run("await page.reload(); await page.waitForSelector('.nav-item')")
        browser.run(teach_again)
        browser.run("await page.click('.training .button'); await page.click('dialog .danger')")
        browser.run("await page.waitForSelector('.jobs .card')")
        assert "dog" in browser.run("return page.innerText('.jobs')")
        shot(browser, "teach-unfinished")
        browser.run("await page.click('text=Forget it'); await page.click('dialog .danger')")
        browser.run("await page.waitForFunction(() => !document.querySelector('.jobs .card'))")


def test_bench_and_import(relay, folder):
    with browsing() as browser:
        opened(browser, relay)
        browser.run(GO, to="bench")
        for key, value in {"prompt": 16, "decode": 4, "rounds": 2, "threads": 1}.items():
            browser.run("await page.fill(values.f, values.v)", f=f"#bench-{key}", v=str(value))
        browser.run("await page.click('text=Measure'); await page.waitForSelector('.result table')")
        rows = browser.run("return page.$$eval('.result tbody tr', (all) => all.map((one) => one.innerText))")
        assert rows[0].startswith("Prompt, 16")
        assert rows[1].startswith("Decode, 4")
        browser.run(GO, to="models")
        browser.run(
            "const chooser = page.waitForEvent('filechooser');"
            "await page.click('text=Import a model');"
            "await (await chooser).setFiles(values.files);"
            "await page.waitForSelector('.banner.good')",
            files=[str(folder / "base.gguf"), str(folder / "factors.gguf")],
        )
        assert browser.run("return page.$$eval('.models article.card:not([hidden]) h2', (all) => all.length)") == 2
        cut = folder.parent / "cut.gguf"
        cut.write_bytes((folder / "base.gguf").read_bytes()[:-5000])
        browser.run(
            "const chooser = page.waitForEvent('filechooser');"
            "await page.click('text=Import a model');"
            "await (await chooser).setFiles([values.file]);"
            "await page.waitForFunction(() => document.querySelector('.banner')?.innerText.includes('Not imported'))",
            file=str(cut),
        )
        browser.run("await page.click('.models article:nth-of-type(2) [aria-label^=\"Delete\"]'); await page.click('dialog .danger')")
        browser.run("await page.waitForFunction(() => document.querySelectorAll('.models article.card:not([hidden])').length === 1)")


def test_without_the_key_the_page_says_so(relay):
    with browsing() as browser:
        browser.run("await page.goto(values.url)", url=relay.url.partition("#")[0])
        browser.run("await page.waitForSelector('.empty')")
        assert "address that the terminal shows" in browser.run("return page.innerText('main')")


def test_the_first_run_asks_for_a_model(cache):
    with relaying(cache) as relay, browsing() as browser:
        browser.run("await page.goto(values.url); await page.waitForSelector('.first')", url=relay.url)
        assert "Bring a model" in browser.run("return page.innerText('main')")
        for scheme in ("light", "dark"):
            browser.run("await page.emulateMedia({colorScheme: values.scheme})", scheme=scheme)
            shot(browser, "first-run", scheme)


SIZES = {
    "small": {"viewport": {"width": 320, "height": 560}},
    "wide": {"device": None, "viewport": {"width": 1280, "height": 800}},
    "phone": {},
    "lying": {"device": "Pixel 7 landscape"},
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("text", [1, 2], ids=["plain", "large"])
def test_every_screen_fits(relay, size, scheme, text):
    """Nothing is wider than the window, and what can be touched is large enough to be."""
    if text == 2 and (size in ("wide", "lying") or scheme == "dark"):
        pytest.skip("large text is looked at on the phones, in one theme")
    with browsing(colorScheme=scheme, **SIZES[size]) as browser:
        opened(browser, relay)
        if text == 2:
            browser.run("await page.addStyleTag({content: ':root { font-size: 200% }'})")
        short(browser, 24)
        ask(browser, "the quick brown fox? 🦊 مرحبا", 1)
        for name in SCREENS:
            browser.run(GO, to=name)
            browser.run("await page.waitForTimeout(300)")
            wide = browser.run(WIDER)
            assert wide == [], (name, wide)
            low = browser.run(SMALL)
            assert low == [], (name, low)
            label = f"{name}-{size}" if size != "phone" else name
            shot(browser, label if text == 1 else f"{label}-large", scheme)
        assert browser.problems == []


WIDER = """
return page.evaluate(() => {
  const scrolls = (node) => node && (['auto', 'scroll', 'hidden'].includes(getComputedStyle(node).overflowX) && node.tagName !== 'MAIN' ? node : scrolls(node.parentElement));
  return [...document.querySelectorAll('body *')].filter((node) => {
    const box = node.getBoundingClientRect();
    if (!box.width || node.closest('.sr, .skip, [hidden], .nav, .scroll, pre, .chips')) return false;
    return box.right > innerWidth + 1 || box.left < -1;
  }).map((node) => `${node.tagName}.${node.className.baseVal ?? node.className}`).slice(0, 5);
});
"""
SMALL = """
return page.evaluate(() => [...document.querySelectorAll('button, a[href], select, input, summary, textarea')].filter((node) => {
  if (node.closest('.sr, [hidden], .skip') || node.type === 'radio' || node.type === 'checkbox') return false;
  const box = node.getBoundingClientRect();
  return box.width > 0 && (box.height < 43.5 || box.width < 43.5);
}).map((node) => `${node.tagName}.${node.className} ${node.getBoundingClientRect().width}x${node.getBoundingClientRect().height}`).slice(0, 5));
"""


def test_right_to_left_and_names_for_readers(relay):
    """Mirrored, the page still fits; everything that can be used has a name."""
    with browsing() as browser:
        opened(browser, relay)
        browser.run("await page.evaluate(() => { document.documentElement.dir = 'rtl'; })")
        short(browser, 16)
        ask(browser, "مرحبا بالعالم؟", 1)
        assert browser.run("return page.evaluate(() => getComputedStyle(document.querySelector('.mine .text')).direction)") == "rtl"
        for name in SCREENS:
            browser.run(GO, to=name)
            assert browser.run(WIDER) == [], name
            unnamed = browser.run(
                "return page.evaluate(() => [...document.querySelectorAll('button, a[href], select, input, textarea, progress')]"
                ".filter((node) => !node.closest('[hidden]') && !(node.getAttribute('aria-label') || node.innerText?.trim() || node.labels?.length))"
                ".map((node) => node.outerHTML.slice(0, 120)))"
            )
            assert unnamed == []
        shot(browser, "chat-rtl")


def test_german(relay):
    with browsing(locale="de-DE") as browser:
        opened(browser, relay)
        assert browser.run("return page.innerText('.nav')").split() == ["Modelle", "Chat", "Lehren", "Tempo", "Info"]
        assert browser.run("return page.evaluate(() => document.documentElement.lang)") == "de"


def shot(browser, name, scheme="light"):
    """Keep a picture, if somebody wants pictures."""
    out = os.environ.get("EDGEPACK_SCREENSHOTS")
    if out:
        path = str(Path(out) / f"{name}-{scheme}.png")
        browser.run("await page.waitForTimeout(300); await page.screenshot({path: values.path})", path=path)
