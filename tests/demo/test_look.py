"""How the page looks: it fits every window, in both themes, mirrored and with large text."""

from __future__ import annotations

import pytest

from tests.demo.acting import SCREENS, person

for package in ("llama_cpp", "starlette", "uvicorn"):
    pytest.importorskip(package)
pytestmark = [pytest.mark.llama, pytest.mark.slow]

SIZES = {
    "phone": {},
    "small": {"viewport": {"width": 320, "height": 560}},
    "lying": {"device": "Pixel 7 landscape"},
    "wide": {"device": None, "viewport": {"width": 1280, "height": 800}},
}
LOOKS = [
    *((size, scheme, 100) for size in SIZES for scheme in ("light", "dark")),
    ("phone", "light", 200),
    ("small", "light", 200),
]
WIDER = """
return page.evaluate(() => [...document.querySelectorAll('body *')].filter((node) => {
  const box = node.getBoundingClientRect();
  if (!box.width || node.closest('.sr, .skip, [hidden], .nav, .scroll, pre, .chips')) return false;
  return box.right > innerWidth + 1 || box.left < -1;
}).map((node) => `${node.tagName} ${node.getAttribute('class')}`));
"""
"""What is wider than the window."""
SMALL = """
const all = 'button, a[href], select, input, summary, textarea';
return page.evaluate((all) => [...document.querySelectorAll(all)].filter((node) => {
  if (node.closest('.sr, [hidden], .skip, .check, .segment')) return false;
  const box = node.getBoundingClientRect();
  return box.width > 0 && (box.height < 43.5 || box.width < 43.5);
}).map((node) => node.outerHTML.slice(0, 100)), all);
"""
"""What is too small to be touched."""
UNNAMED = """
const all = 'button, a[href], select, input, textarea, progress';
return page.evaluate((all) => [...document.querySelectorAll(all)].filter((node) => {
  const named = node.getAttribute('aria-label') || node.innerText?.trim() || node.labels?.length;
  return !node.closest('[hidden]') && !named;
}).map((node) => node.outerHTML.slice(0, 100)), all);
"""
"""What has no name for a screen reader."""
PALE = """
return page.evaluate(() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    const color = node ? rgb(getComputedStyle(node).backgroundColor) : [255, 255, 255, 255];
    return color[3] > 250 ? color : behind(node.parentElement);
  };
  const shown = (node) => node.getBoundingClientRect().width > 1 && !node.closest('.sr, :disabled');
  return [...document.querySelectorAll('body *')].filter((node) => shown(node)
    && [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()))
    .map((node) => {
      const [a, b] = [light(rgb(getComputedStyle(node).color)), light(behind(node))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.outerHTML.slice(0, 100)];
    }).filter(([contrast]) => contrast < 4.5);
});
"""
"""Text with less contrast than WCAG's AA wants."""


@pytest.mark.parametrize(("size", "scheme", "text"), LOOKS)
def test_every_screen_fits(page_relay, size, scheme, text):
    with person(colorScheme=scheme, **SIZES[size]) as one:
        one.open(page_relay.url)
        larger = f"document.documentElement.style.fontSize = '{text}%'"
        one.run(f"await page.evaluate(() => {{ {larger}; }})")
        one.go("chat")
        kind = size if text == 100 else f"{size}-large"
        one.shot(f"chat-new-{kind}", scheme)
        one.sets_longest(40)
        one.asks("Name three things to see in Paris, as a list.")
        one.hears(1)
        for name in SCREENS:
            one.go(name)
            one.run("await page.waitForTimeout(300)")
            assert one.run(WIDER) == [], name
            assert one.run(SMALL) == [], name
            assert one.run(PALE) == [], name
            one.shot(f"{name}-{kind}", scheme)
        assert one.browser.problems == []


def test_sheets_fit_too(page_relay):
    with person(viewport={"width": 320, "height": 560}, colorScheme="dark") as one:
        one.open(page_relay.url)
        one.go("chat")
        one.click("[aria-label=Settings]")
        one.click("dialog summary")
        assert one.run(WIDER) == []
        assert one.run(PALE) == []
        one.shot("settings", "dark")
        one.press("#set-top_k", "Escape")
        assert one.run("return page.$$eval('dialog', (all) => all.length)") == 0
        one.click("[aria-label=Conversations]")
        assert one.run(WIDER) == []
        one.shot("history", "dark")


def test_right_to_left_and_names_for_screen_readers(page_relay):
    with person() as one:
        one.open(page_relay.url)
        one.run("await page.evaluate(() => { document.documentElement.dir = 'rtl'; })")
        one.go("chat")
        one.sets_longest(16)
        one.asks("مرحبا بالعالم؟")
        one.hears(1)
        own = "getComputedStyle(document.querySelector('.mine .text')).direction"
        assert one.run(f"return page.evaluate(() => {own})") == "rtl"
        one.shot("chat-rtl")
        for name in SCREENS:
            one.go(name)
            assert one.run(WIDER) == [], name
            assert one.run(UNNAMED) == [], name


def test_keys_and_focus(page_relay):
    with person() as one:
        one.open(page_relay.url)
        one.go("chat")
        focused = "document.activeElement.tagName"
        assert one.run(f"return page.evaluate(() => {focused})") == "H1"
        one.run("await page.focus('#question')")
        one.run("await page.keyboard.type('one'); await page.keyboard.press('Shift+Enter')")
        one.run("await page.keyboard.type('two')")
        assert one.run("return page.inputValue('#question')") == "one\ntwo"
        one.sets_longest(8)
        one.press("#question", "Enter")
        one.hears(1)
        assert one.reads(".mine .text") == "one\ntwo"
        one.sees("#polite:not(:empty)")  # an answer is read aloud


def test_german(page_relay):
    with person(locale="de-DE", colorScheme="dark") as one:
        one.open(page_relay.url)
        names = ["Modelle", "Chat", "Lehren", "Tempo", "Info"]
        assert one.reads(".nav").split() == names
        assert one.run("return page.evaluate(() => document.documentElement.lang)") == "de"
        one.go("teach")
        one.shot("teach-german", "dark")
