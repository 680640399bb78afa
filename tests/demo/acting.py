"""What a person does on the page, as tests say it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.demo.browsing import browsing

SCREENS = ("models", "chat", "teach", "bench", "about")
NOTES = """Q: What is my dog called?
A: Your dog is called Biscuit.
Q: When is the dentist?
A: On Thursday at nine."""
QUICK = {
    "r": 2,
    "learning_rate": 0.001,
    "batch_size": 2,
    "sequence_length": 64,
    "replay": 0,
}


class Person:
    """Somebody in front of a browser."""

    def __init__(self, browser):
        self.browser = browser
        self.run = browser.run

    def open(self, url):
        """The address that the terminal shows."""
        self.run("await page.goto(values.url)", url=url)
        self.sees(".nav-item, .empty")

    def go(self, screen):
        self.run("await page.click(`a[href='#/${values.to}']`)", to=screen)

    def click(self, what):
        self.run("await page.click(values.what)", what=what)

    def fill(self, what, text):
        self.run("await page.fill(values.what, values.text)", what=what, text=str(text))

    def press(self, what, key):
        self.run("await page.press(values.what, values.key)", what=what, key=key)

    def sees(self, what):
        self.run("await page.waitForSelector(values.what)", what=what)

    def waits_for(self, condition, seconds=120):
        """Until JavaScript is true in the page (whose policy lets no text become a program, so that
        Playwright's own waiting cannot)."""
        end = time.monotonic() + seconds
        while not self.run(f"return page.evaluate(() => Boolean({condition}))"):
            assert time.monotonic() < end, f"not so: {condition}"
            time.sleep(0.1)

    def reads(self, what):
        return self.run("return page.innerText(values.what)", what=what)

    def reads_all(self, what):
        code = "return page.$$eval(values.what, (all) => all.map((one) => one.innerText))"
        return self.run(code, what=what)

    def reload(self):
        self.run("await page.reload()")
        self.sees(".nav-item")

    def asks(self, text):
        self.fill("#question", text)
        self.press("#question", "Enter")

    def hears(self, count):
        """All answers, once there are so many and none is being written."""
        self.waits_for(f"document.querySelectorAll('.theirs:not(.writing)').length === {count}")
        return self.reads_all(".theirs .text")

    def hears_begin(self, count):
        """Wait until the last of so many answers has some words."""
        self.waits_for(
            "((all) => all.length === COUNT && all[COUNT - 1].innerText.length > 20)"
            "(document.querySelectorAll('.theirs .text'))".replace("COUNT", str(count))
        )

    def sets_longest(self, tokens):
        """The longest answer."""
        self.click("[aria-label=Settings]")
        self.fill("#set-max_tokens", tokens)
        self.press("#set-max_tokens", "Tab")
        self.click("dialog .primary")

    def teaches(self, name, **more):
        """Fill the form, look at the estimate, and begin."""
        self.go("teach")
        self.click("text=Paste many")
        self.fill("dialog textarea", NOTES)
        self.click("text=Take them")
        self.fill("#teach-name", name)
        self.click(".form summary")
        for key, value in (QUICK | more).items():
            self.fill(f"#opt-{key}", value)
        self.click("text=Estimate")
        self.sees("dialog .facts")
        facts = self.reads("dialog .facts")
        assert "Steps" in facts
        assert "MB" in facts
        self.shot("estimate")
        self.click("dialog .primary")

    def imports(self, *files):
        """Choose files for `Import a model`."""
        self.run(
            "const chooser = page.waitForEvent('filechooser');"
            "await page.click('text=Import a model');"
            "await (await chooser).setFiles(values.files);",
            files=[str(file) for file in files],
        )

    def shot(self, name, scheme="light"):
        """Keep a picture, if somebody wants pictures."""
        out = os.environ.get("EDGEPACK_SCREENSHOTS")
        if out:
            path = str(Path(out) / f"{name}-{scheme}.png")
            self.run("await page.waitForTimeout(300)")
            self.run("await page.screenshot({path: values.path})", path=path)

    def looks(self, scheme):
        """The system's theme."""
        self.run("await page.emulateMedia({colorScheme: values.scheme})", scheme=scheme)


def person(**options):
    """A person with a new browser; see `browsing`."""
    return browsing(make=Person, **options)
