"""The page in Chromium at the size of a phone, through a real relay and real workers.

``EDGEPACK_NODE`` names a folder where npm installed playwright-core, ``EDGEPACK_SCREENSHOTS`` one
that gets pictures of every screen.
"""

from __future__ import annotations

import pytest

from tests.demo.acting import person
from tests.demo.browsing import needs
from tests.demo.relaying import relaying

for package in ("llama_cpp", "starlette", "uvicorn"):
    pytest.importorskip(package)
pytestmark = [pytest.mark.llama, pytest.mark.slow]

COUNT_CHANGES = """
await page.evaluate(() => {
  window.seen = new Set();
  const look = () => window.seen.add(document.querySelector('.theirs .text')?.innerText);
  new MutationObserver(look).observe(document.body, {subtree: true, childList: true});
});
"""
QUESTION = "What is my dog called?"


def test_chat_streams_and_notes_change_the_answer(page_relay):
    with person() as one:
        one.open(page_relay.url)
        one.sets_longest(60)
        one.run(COUNT_CHANGES)
        with page_relay.slowed():
            one.asks("Tell me about foxes.")
            (plain,) = one.hears(1)
        assert one.run("return page.evaluate(() => window.seen.size)") > 4
        stats = one.reads(".stats")
        for word in ("tokens/s", "first after", "MB peak"):
            assert word in stats
        one.click(".chip")
        assert one.run("return page.getAttribute('.chip', 'aria-checked')") == "true"
        one.click("[aria-label='New conversation']")
        one.asks("Tell me about foxes.")
        (noted,) = one.hears(1)
        assert noted != plain
        one.click("[aria-label='Answer again']")
        one.sees(".theirs .stats")
        assert one.hears(1) == [noted]
        one.click("[aria-label^='Edit and go']")
        one.fill(".editing textarea", "another fox?")
        one.press(".editing textarea", "Enter")
        one.hears(1)
        assert one.reads(".mine .text").strip() == "another fox?"
        assert one.browser.problems == []


def test_a_reload_restores_and_an_answer_can_be_stopped(page_relay):
    with person() as one:
        one.open(page_relay.url)
        one.sets_longest(24)
        one.asks("the quick brown fox?")
        (first,) = one.hears(1)
        one.sets_longest(1500)
        with page_relay.slowed():
            one.asks("Write a very long story about a dog.")
            one.hears_begin(2)
            one.click("[aria-label='Stop the answer']")
            one.hears(2)
        assert "Stopped." in one.reads(".theirs:last-child .under")
        with page_relay.slowed() as held:
            one.asks("Write a very long story about a cat.")
            one.hears_begin(3)
            held.set()
            one.run("await page.waitForTimeout(900)")
            one.reload()
        answers = one.hears(3)
        assert answers[0] == first
        assert len(answers[2]) > 10
        assert "broke off" in one.reads(".theirs:last-child .under")
        one.click("[aria-label=Conversations]")
        one.sees(".row-item")
        assert len(one.reads_all(".row-item")) == 1
        one.click("dialog [aria-label^=Rename]")
        one.fill("#asked", "Foxes")
        one.press("#asked", "Enter")
        one.waits_for("document.querySelector('dialog .row-title').innerText === 'Foxes'")
        one.click("dialog [aria-label='Delete Foxes']")
        one.click("dialog:last-of-type .danger:not(.quiet)")
        one.sees("dialog .empty")


def test_a_killed_worker_is_told_and_the_page_recovers(page_relay):
    with person() as one:
        one.open(page_relay.url)
        one.sets_longest(1500)
        with page_relay.slowed():
            one.asks("Write a very long story about a dog.")
            one.hears_begin(1)
            for process in page_relay.workers("chat"):
                process.kill()
        (left,) = one.hears(1)
        assert len(left) > 10  # what it had written is still there
        assert "has ended" in one.reads(".banner")
        one.shot("chat-ended")
        one.click(".banner .small")
        one.sees(".banner.good")
        one.sets_longest(8)
        one.asks("again?")
        assert len(one.hears(2)) == 2
        for process in page_relay.workers("chat"):  # and by itself, with the next question
            process.kill()
        one.asks("and again?")
        one.hears(3)
        assert "broke off" not in one.reads(".theirs:last-child")


def test_teach_runs_to_the_end_and_is_compared(page_relay, shown):
    with person() as one:
        one.open(page_relay.url)
        one.sets_longest(24)
        one.teaches("dog")
        one.sees(".sides .side.on .stats")
        off, on = one.reads_all(".side .text")
        assert off != on
        one.run("await page.$eval('.compare', (node) => node.scrollIntoView())")
        one.shot("compare")
        one.looks("dark")
        one.shot("compare", "dark")
        assert (shown / "adapters/dog/adapter.json").is_file()
        one.go("chat")
        assert one.run("return page.getAttribute('.chat .chip:has-text(\"dog\")', 'aria-checked')")
        assert one.browser.problems == []


def test_a_reload_watches_the_training_and_it_can_be_stopped(page_relay):
    runs = "document.querySelector('.training .facts')?.innerText.includes('→')"
    with person() as one:
        one.open(page_relay.url)
        one.teaches("dog", epochs=900)
        one.waits_for(runs)
        one.shot("training")
        one.looks("dark")
        one.shot("training", "dark")
        one.reload()
        one.waits_for(runs)
        one.click(".training .button")
        one.click("dialog .danger")
        one.sees(".jobs .card")
        assert "dog" in one.reads(".jobs")
        one.shot("teach-unfinished", "dark")
        one.click("text=Forget it")
        one.click("dialog .danger")
        one.waits_for("!document.querySelector('.jobs .card')")


def test_bench(page_relay):
    with person() as one:
        one.open(page_relay.url)
        one.go("bench")
        for key, value in {"prompt": 16, "decode": 4, "rounds": 2, "threads": 1}.items():
            one.fill(f"#bench-{key}", value)
        one.click(".bench .primary")
        one.sees(".result table")
        rows = one.reads_all(".result tbody tr")
        assert rows[0].startswith("Prompt, 16")
        assert rows[1].startswith("Decode, 4")
        for scheme in ("light", "dark"):
            one.looks(scheme)
            one.run("await page.$eval('.result', (node) => node.scrollIntoView())")
            one.shot("bench-result", scheme)


def test_imports_are_checked_and_removed(page_relay, shown):
    cards = "document.querySelectorAll('.models .cards .card').length"
    with person() as one:
        one.open(page_relay.url)
        one.go("models")
        factors = [path for path in [shown / "factors.gguf"] if path.is_file()]
        one.imports(shown / "base.gguf", *factors)
        one.sees(".banner.good")
        one.waits_for(f"{cards} === 2")
        cut = shown.parent / "cut.gguf"
        cut.write_bytes((shown / "base.gguf").read_bytes()[:-5000])
        one.imports(cut)
        one.waits_for("document.querySelector('.banner')?.innerText.includes('Not imported')")
        one.shot("models-refused")
        one.click(".models .card >> nth=-1 >> [aria-label='Delete base']")
        one.click("dialog .danger")
        one.waits_for(f"{cards} === 1")


def test_without_the_key_the_page_says_so(page_relay):
    with person() as one:
        one.open(page_relay.url.partition("#")[0])
        assert "address that the terminal shows" in one.reads("main")


def test_the_relay_s_end_is_told(page_relay):
    with person() as one:
        one.open(page_relay.url)
        page_relay.end()
        one.sees(".banner")
        assert "does not answer" in one.reads(".banner")


def test_the_first_run_asks_for_a_model(own_cache):
    needs()
    with relaying(own_cache) as relay, person() as one:
        one.open(relay.url)
        one.sees(".first")
        assert "Bring a model" in one.reads("main")
        for scheme in ("light", "dark"):
            one.looks(scheme)
            one.shot("first-run", scheme)
        for screen in ("chat", "teach", "bench"):
            one.go(screen)
            assert "no model yet" in one.reads(f".screen.{screen}")
        assert one.browser.problems == []
