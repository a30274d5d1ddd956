"""The report: one file, no request, nothing unescaped, the same for the same records."""

from __future__ import annotations

import base64
import hashlib
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from benchmarks.records import write
from benchmarks.schema import Manifest
from reports import looks, render
from reports.vector import svg


class Page(HTMLParser):
    """Collects tags, attributes and the text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert render([run_folder], path) == path
    assert path.stat().st_size < 5_000_000
    return path.read_text(encoding="utf-8")


def test_nothing_is_fetched(html: str) -> None:
    page = Page(html)
    fetching = {"src", "href", "xlink:href", "action", "data", "poster", "srcset", "background"}
    for tag, attributes in page.tags:
        for name in fetching & set(attributes):
            assert re.match(r"(#|data:)", attributes[name] or ""), (tag, name, attributes[name])
        assert not any(name.startswith("on") for name in attributes), tag
    assert not {"iframe", "object", "embed", "img", "base", "form"} & {tag for tag, _ in page.tags}
    assert not re.search(r"@import|url\((?!#)", re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL))


def test_the_policy_allows_the_embedded_scripts_and_no_other(html: str) -> None:
    page = Page(html)
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    data = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, flags=re.DOTALL)
    assert len(scripts) + len(data) == sum(tag == "script" for tag, _ in page.tags) == 3
    policy = next(
        a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    assert policy.startswith(f"default-src 'none'; script-src {allowed};") and "unsafe-eval" not in policy
    assert not re.search("[<>&]", data[0])  # nothing in the data can end the element that it stands in


def test_filters_hide_what_they_say(html: str) -> None:
    """Each choice has a rule that hides what lacks its class, and something that has it."""
    page = Page(html)
    choices = re.findall(
        r'body:has\(#by-(\w+) option\[value="([\w]+)"\]:checked\) ([^:{]+):not\(\.\2\)\{display:none\}', html
    )
    offered = [attributes["value"] for tag, attributes in page.tags if tag == "option" and attributes.get("value")]
    assert sorted(value for _, value, _ in choices) == sorted(offered) and len(offered) > 8
    names = {name for name, _, _ in choices}
    assert names == {"problem", "family", "k", "verdict"}
    labelled = {attributes["for"] for tag, attributes in page.tags if tag == "label" and "for" in attributes}
    assert {f"by-{name}" for name in names} == labelled
    for _, value, hidden in choices:
        tag = "section" if hidden.startswith(".problem") else "tr"
        assert any(value in (attributes.get("class") or "").split() for name, attributes in page.tags if name == tag)


def test_every_figure_of_the_table_alone_says_how_to_redraw_it(
    html: str, run_folder: Path, monkeypatch, tmp_path
) -> None:
    """The training curves, and the roofs of the machine, are not in the table."""
    scripts = re.findall(r'<pre tabindex="0"><code>(.*?)</code></pre>', html, flags=re.DOTALL)
    drawings = html.count('<div class="plate"')
    assert len(scripts) == drawings - 2
    monkeypatch.chdir(tmp_path)
    (tmp_path / run_folder.name).symlink_to(run_folder)
    kinds = {re.search(r"figures\.(\w+)", script)[1]: script for script in scripts}
    assert set(kinds) == {"variance_against_cost", "bias", "snr_against_k", "throughput", "pyro_beside_ours"}
    for script in kinds.values():
        exec(unescape(script), {})
        assert len(script.splitlines()) <= 10
    assert len(list(tmp_path.glob("*.pdf"))) == len(kinds)


def test_what_comes_from_outside_is_escaped(html: str) -> None:
    page = Page(html)
    for number in (1, 2, 3, 4):
        assert f"alert({number})" in page.text  # shown as text
        assert f"<script>alert({number})" not in html
    assert "<img src=x>" in page.text
    assert "<b>bold</b>" in page.text


def test_every_section_is_there_and_says_what_happened(html: str, fabricate: SimpleNamespace) -> None:
    text = Page(html).text
    for heading in (
        "What ran",
        "Verdicts",
        "Variance against cost",
        "Bias",
        "Tails",
        "Throughput",
        "Trained VAEs",
        "Pyro beside ours",
    ):
        assert re.search(rf"\d+\. {heading}", text)
    assert "gradest run config.toml" in text
    assert "with changes that were not committed" in text
    assert "deadbeef.json: unreadable" in text
    assert "needs K >= 2, got K = 1" in text
    assert "5 %: 0.3, 50 %: 1.1" in text  # quantiles where no variance exists
    assert fabricate.problem in text


def test_the_bibliography_is_of_what_was_shown(html: str) -> None:
    text = Page(html).text
    assert "Auto-Encoding Variational Bayes" in text
    assert "Not shown" not in text
    assert "missing-key: the run's manifest holds no entry" in text


def test_figures_have_a_text_and_their_data(html: str) -> None:
    page = Page(html)
    plates = [attributes for tag, attributes in page.tags if tag == "div" and attributes.get("class") == "plate"]
    assert len(plates) == html.count("<svg font") >= 8
    assert all(plate["aria-label"] for plate in plates)
    downloads = [attributes["download"] for tag, attributes in page.tags if tag == "a" and "download" in attributes]
    assert len(downloads) == len(set(downloads)) == 2 * len(plates) + 1
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_no_figure_restyles_another(tmp_path: Path) -> None:
    """Rules of an inline drawing hold for the whole page: a class stands for one style, whichever figures come together."""
    rules: dict[str, str] = {}
    for number in (1, 2, 11, 12, 111):
        figure = Figure()
        axes = figure.subplots()
        for place in range(15):  # each style three times, so that it becomes a class
            axes.plot([[0, 0, 0], [1, 1, 1]], color=(number / 200, place / 20, 0.5))
        found = re.findall(r"\.([\w-]+)\{([^{}]*)\}", svg(figure, f"f{number}"))
        assert len(found) > 15
        for name, style in found:
            assert rules.setdefault(name, style) == style


def test_the_same_records_give_the_same_file(tmp_path: Path, fabricate: SimpleNamespace) -> None:
    folder = tmp_path / "run"
    for k in (1, 8):
        fabricate.cell(folder, fabricate.problem, "iwae", k)
    first, second = render([folder], tmp_path / "1.html"), render([folder], tmp_path / "2.html")
    assert first.read_bytes() == second.read_bytes()


def test_a_run_without_a_single_finished_cell_still_gives_a_report(tmp_path: Path, fabricate: SimpleNamespace) -> None:
    folder = tmp_path / "run"
    write(folder / "manifest.json", Manifest(name="empty", command="gradest run", started="now"))
    assert "No finished cell was found" in render([folder], tmp_path / "a.html").read_text(encoding="utf-8")
    fabricate.cell(folder, fabricate.problem, "iwae", 1, status="timeout", blocks=[], reason="60 s")
    assert "1 timeout" in render([folder], tmp_path / "b.html").read_text(encoding="utf-8")


def test_runs_are_laid_over_each_other(tmp_path: Path, fabricate: SimpleNamespace) -> None:
    folders = [tmp_path / "before", tmp_path / "after"]
    for folder in folders:
        fabricate.cell(folder, fabricate.problem, "iwae", 1)
    text = Page(render(folders, tmp_path / "both.html").read_text(encoding="utf-8")).text
    assert "iwae · before" in text
    assert "iwae · after" in text


def test_values_that_differ_by_rounding_alone_have_room_about_them() -> None:
    """Warnings are errors: matplotlib's margin about them would be none."""
    axes = Figure().subplots()
    axes.set(xscale="log", yscale="log")
    axes.plot([2, 2], [1000.0, 999.9999999999998])
    looks.powers(axes)
    low, high = axes.get_ylim()
    assert low < 500 and high > 2000


@pytest.mark.parametrize("size", [1.7e308, 5e-324])
def test_numbers_at_the_ends_of_what_there_is_are_drawn_without_a_warning(
    tmp_path: Path, fabricate: SimpleNamespace, size: float
) -> None:
    """A warning is an error here; ``gradest report`` would print it."""
    first, second = (fabricate.cell(tmp_path, fabricate.problem, "iwae", k) for k in (1, 8))
    extreme = {"variance": size, "bias_norm": size, "snr": size, "mse": size}
    blocks = [block.model_copy(update=extreme) for block in second.blocks]
    cost = second.cost.model_copy(update={"flops_per_gradient": size, "gradients_per_second": size})
    write(tmp_path / "cells" / f"{second.id}.json", second.model_copy(update={"blocks": blocks, "cost": cost}))
    write(tmp_path / "manifest.json", Manifest(name="m", command="c", started="s", cells=[first.id, second.id]))
    assert render([tmp_path], tmp_path / "report.html").stat().st_size > 10_000
