"""The report in Chromium, headless, offline: it draws, answers, filters, fits a phone, and asks for nothing."""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path

import fabricated
import pytest

from reports import render

pytestmark = pytest.mark.browser
MARKS = "document.querySelectorAll('.chart .role-mark.points_marks path, .chart g.mark-symbol[role] path').length"
CHOOSE = "(() => {{ const s = document.querySelector({!r}); s.value = {!r}; s.dispatchEvent(new Event('input', {{bubbles: true}}));" \
         " s.dispatchEvent(new Event('change', {{bubbles: true}})); return s.value; }})()"  # fmt: skip


def axe_core() -> str:
    """Deque's axe-core (MPL-2.0), as the package carries it that ``nox -s browser`` installs; of that, nothing else is used."""
    found = importlib.util.find_spec("axe_playwright_python")
    assert found is not None and found.submodule_search_locations, "no axe-core here: nox -s browser installs it"
    return Path(found.submodule_search_locations[0], "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    chosen = ["reparameterization", "sticking-the-landing", "iwae", "dreg", "jackknife", "pyro-trace-elbo"]
    run = fabricated.write_run(folder / "run", [fabricated.GAUSSIAN, fabricated.START], chosen, [1, 8, 64])
    return render([run], folder / "report.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_draws_asks_for_nothing_and_fits(browser, page, width, scheme):
    browser.open(page, width, scheme)
    browser.wait(f"{MARKS} > 5")
    assert browser.complaints() == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    paper, ink = (browser.evaluate(f"getComputedStyle(document.body).{what}") for what in ("backgroundColor", "color"))
    dark = sum(int(part) for part in paper[4:-1].split(",")) < 200
    assert dark == (scheme == "dark") and paper != ink
    label = browser.evaluate("getComputedStyle(document.querySelector('.chart svg text')).fill")
    assert label == ink  # axes follow the colour scheme


def filters_and_hover(browser, page, least):
    """Each filter of the chart changes what is drawn, and a mark that is pointed at says what it is."""
    browser.open(page)
    browser.wait(f"{MARKS} > {least}", 60)
    every = browser.evaluate(MARKS)
    names = browser.evaluate("[...document.querySelectorAll('.chart select')].map(s => s.name)")
    assert names == ["problem", "block", "meter", "kin", "aim", "chosen"]
    browser.evaluate(CHOOSE.format(".chart select[name=kin]", "1"))
    browser.wait(f"{MARKS} < {every} && {MARKS} > 0")
    browser.evaluate(CHOOSE.format(".chart select[name=kin]", "-1"))
    browser.evaluate(CHOOSE.format(".chart select[name=meter]", "1"))
    browser.wait(f"{MARKS} == {every}")
    place = browser.evaluate(
        "(() => { document.querySelector('.chart').scrollIntoView(); const marks = document.querySelectorAll("
        "'.chart .role-mark.points_marks path, .chart g.mark-symbol[role] path'); "
        "const r = marks[0].getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    browser.wait("document.querySelector('#vg-tooltip-element.visible') !== null")
    text = browser.evaluate("document.querySelector('#vg-tooltip-element').innerText")
    assert all(word in text for word in ("estimator", "K", "variance", "[", "cost", "verdict", "family"))
    assert browser.complaints() == []


def test_filters_of_the_chart_and_hover(browser, page):
    filters_and_hover(browser, page, 5)


def test_filters_and_sorting_of_the_tables(browser, page):
    shown = "[...document.querySelectorAll('.num tbody tr')].filter(r => getComputedStyle(r).display != 'none').length"
    browser.open(page)
    browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    every = browser.evaluate(shown)
    browser.evaluate(CHOOSE.format("#by-k", "k8"))
    assert 0 < browser.evaluate(shown) < every
    browser.evaluate(CHOOSE.format("#by-family", "f0"))
    fewer = browser.evaluate(shown)
    assert 0 < fewer < every / 3
    visible = "[...document.querySelectorAll('.problem')].filter(r => getComputedStyle(r).display != 'none').length"
    before = browser.evaluate(visible)
    browser.evaluate(CHOOSE.format("#by-problem", "p1"))
    assert browser.evaluate(visible) < before
    browser.evaluate("document.querySelector('.num th:nth-child(9)').click()")
    assert browser.evaluate("document.querySelector('.num th:nth-child(9)').ariaSort") in ("ascending", "descending")


def test_headers_sort_by_the_keyboard(browser, page):
    browser.open(page)
    browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    header = "document.querySelector('.num th:nth-child(9)')"
    browser.evaluate(f"{header}.focus()")
    assert browser.evaluate(f"document.activeElement === {header}")
    for kind in ("keyDown", "keyUp"):
        browser("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    assert browser.evaluate(f"{header}.ariaSort") in ("ascending", "descending")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser, page, scheme):
    """Nor anything lesser: no rule of axe-core's is broken, contrast among them, with all details open."""
    browser.open(page, 1440 if scheme == "light" else 390, scheme)
    browser.wait(f"{MARKS} > 5")
    browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    browser.evaluate(axe_core() + ";0")
    found = browser.evaluate(
        "axe.run(document, {resultTypes: ['violations']}).then(r => ({rules: r.passes.length, broken: r.violations.map("
        "v => `${v.impact}: ${v.id}: ${v.nodes.map(n => n.html.slice(0, 120)).slice(0, 3).join(' | ')}`)}))"
    )
    assert found["rules"] > 15
    assert found["broken"] == []


def test_axe_would_find_it(browser, page):
    """Grey on grey, and a control without a name, are found: the test can fail."""
    browser.open(page)
    browser.evaluate(
        "document.querySelector('main').insertAdjacentHTML('afterbegin', "
        "'<p style=\"color:#777;background:#666\">pale</p><select><option>1</option></select>')"
    )
    browser.evaluate(axe_core() + ";0")
    found = browser.evaluate("axe.run('main').then(r => r.violations.map(v => v.id))")
    assert {"color-contrast", "select-name"} <= set(found)


def test_keyboard_and_screen_reader(browser, page):
    """Every control has a name, every focusable region too; the first Tab is the way past the contents."""
    browser.open(page)
    browser.wait(f"{MARKS} > 5")
    nodes = browser("Accessibility.getFullAXTree")["nodes"]
    roles = ("combobox", "link", "button", "region", "img", "image", "graphics-document")
    nameless = [
        n for n in nodes
        if not n.get("ignored") and n.get("role", {}).get("value") in roles and not n.get("name", {}).get("value")
    ]  # fmt: skip
    assert nameless == []
    for kind in ("keyDown", "keyUp"):
        browser("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert browser.evaluate("document.activeElement.className") == "skip"
    levels = browser.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert browser.evaluate("document.documentElement.lang") == "en"


def test_two_thousand_cells(browser, tmp_path):
    """Below 5 MB, first paint below 1 s."""
    problems = [fabricated.GAUSSIAN, fabricated.START, *(f"extra-{i}[a=1]" for i in range(6))]
    many = [*fabricated.RULES, *(f"method-{i}" for i in range(27))]
    run = fabricated.write_run(tmp_path / "run", problems, many, [1, 2, 4, 8, 16, 32, 64])
    assert len(list((run / "cells").glob("*.json"))) > 2000
    path = render([run], tmp_path / "report.html")
    assert path.stat().st_size < 5_000_000
    browser.open(path)
    browser.wait(f"{MARKS} > 50", 60)
    paint = browser.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    print(f"{path.stat().st_size} bytes, first contentful paint after {paint:.0f} ms")
    assert paint < 1000 and browser.complaints() == []
    filters_and_hover(browser, path, 50)
