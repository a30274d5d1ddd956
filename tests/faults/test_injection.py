"""Text from outside, in every field of every kind of record, stays text in the report: the page is parsed to see that."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from benchmarks.outside import plain
from benchmarks.records import write
from benchmarks.schema import BlockResult, Cell, Cost, Manifest, Record, TrainingPoint, TrainingRecord
from reports import export, frame
from reports.render import render

MARK = "gradestInjected"
CALL = f"{MARK}()"
CORPUS = [
    f"<script>{CALL}</script>",
    f"</script><script>{CALL}</script>",
    f"</style><script>{CALL}</script>",
    f"</title><script>{CALL}</script>",
    f"</textarea><script>{CALL}</script>",
    f"</pre><script>{CALL}</script>",
    f"</svg><script>{CALL}</script>",
    f"--><script>{CALL}</script>",
    f"]]><script>{CALL}</script>",
    f"<!--<script>{CALL}</script>",
    f"<ScRiPt>{CALL}</sCrIpT>",
    f"<script\n>{CALL}</script\n>",
    f"<script/x>{CALL}</script>",
    f"<scr<script>ipt>{CALL}</scr</script>ipt>",
    f"<img src=x onerror={CALL}>",
    f'"><img src=x onerror={CALL}>',
    f"'><img src=x onerror={CALL}>",
    f"`><img src=x onerror={CALL}>",
    f"<img/src=x/onerror={CALL}>",
    f"<svg onload={CALL}>",
    f"<svg><animate onbegin={CALL} attributeName=x>",
    f"<svg><script>{CALL}</script></svg>",
    f"<math><mi xlink:href='javascript:{CALL}'>x</mi></math>",
    f"<iframe src='javascript:{CALL}'></iframe>",
    f"<iframe srcdoc='<script>{CALL}</script>'></iframe>",
    f"<object data='javascript:{CALL}'></object>",
    f"<embed src='javascript:{CALL}'>",
    f"<a href='javascript:{CALL}'>x</a>",
    f"<a href='data:text/html,<script>{CALL}</script>'>x</a>",
    f"javascript:{CALL}",
    f"<body onload={CALL}>",
    f"<details open ontoggle={CALL}>",
    f"<input autofocus onfocus={CALL}>",
    f"<video><source onerror={CALL}></video>",
    f"<marquee onstart={CALL}>",
    f"<meta http-equiv=refresh content='0;url=javascript:{CALL}'>",
    f"<link rel=stylesheet href='data:text/css,*{{background:url(javascript:{CALL})}}'>",
    f"<style>@import 'javascript:{CALL}';</style>",
    f"<base href='javascript:{CALL}//'>",
    f"<form action='javascript:{CALL}'><input type=submit>",
    f'" onmouseover="{CALL}',
    f"' onmouseover='{CALL}",
    f" onmouseover={CALL} x=",
    f"{{{{ {CALL} }}}}{{% include '{MARK}' %}}",
    f"${{{CALL}}}",
    f"\\u003cscript\\u003e{CALL}\\u003c/script\\u003e",
    f"&lt;script&gt;{CALL}&lt;/script&gt;",
    f"&#60;script&#62;{CALL}&#60;/script&#62;",
    f"%3Cscript%3E{CALL}%3C/script%3E",
    f"\x00<script>{CALL}</script>\u2028\u2029",
    f"\ufeff<script>{CALL}</script>",
    f"\u202e\x1b[31m\x07\u2066<script>{CALL}</script>",
    f"$x$ $\\href{{javascript:{CALL}}}{{x}}$",
    f"@article{{x, title={{<script>{CALL}</script>}}}}",
]


def poisoned(folder, texts):
    """A run folder with a string of ``texts`` in every field that holds free text: the next one in each, and round again."""
    supply = itertools.cycle(texts)
    ids = []
    for number, (status, estimator) in enumerate(
        [
            ("ok", next(supply)),
            ("ok", "dreg"),
            ("error", next(supply)),
            ("refused", next(supply)),
            ("ok", f"sumo[{next(supply)}]"),
        ]
    ):
        cell = Cell(
            **{
                "problem": next(supply) if number != 1 else "gaussian-1d[loc=1.2]",
                "estimator": estimator,
                "num_samples": 2,
            },
            **{
                "replicates": 100,
                "seed": number,
                "dtype": next(supply),
                "device": next(supply),
                "versions": {next(supply): next(supply)},
            },
        )
        blocks = [
            BlockResult(
                **{
                    "block": name,
                    "target": next(supply),
                    "unbiased": True,
                    "dimensions": 2,
                    "replicates": 100,
                    "verdict": verdict,
                },
                **{
                    "verdict_reason": next(supply),
                    "worst_direction": next(supply),
                    "reference_method": next(supply),
                    "mean_norm": 1.0,
                },
                **{
                    "reference_norm": 1.0,
                    "bias_norm": 0.1,
                    "bias_interval": (0.0, 0.2),
                    "bias_z": 0.5,
                    "variance": 2.0,
                },
                **{"variance_interval": (1.5, 2.5), "snr": 0.7, "snr_interval": (0.6, 0.8), "quantiles": {"0.5": 1.0}},
            )
            for name, verdict in (("theta", "PASS"), ("phi", "HEAVY_TAIL"))
        ]
        record = Record(
            **{
                "id": cell.id,
                "cell": cell,
                "status": status,
                "reason": next(supply),
                "traceback": f"{next(supply)}\n{next(supply)}",
            },
            **{
                "library": next(supply),
                "counterpart": next(supply),
                "family": next(supply),
                "summary": next(supply),
                "citations": [next(supply), "x"],
            },
            **{"blocks": blocks if status == "ok" else [], "seconds": 1.0},
            cost=Cost(evaluations_per_gradient=2, seconds_per_gradient=1e-3, gradients_per_second=1e3, chunk=8),
        )
        write(folder / "cells" / f"{cell.id}.json", record)
        ids.append(cell.id)
    points = [
        TrainingPoint(step=s, epoch=s, seconds=s, train_elbo=-s, heldout_elbo=-s, checkpoint=next(supply))
        for s in (1, 2)
    ]
    training = TrainingRecord(
        id="0", problem=next(supply), settings={next(supply): next(supply)}, parameters=3, points=points
    )
    write(folder / "training" / "0.json", training)
    (folder / "training" / f"{MARK}<img src=x onerror=alert(1)>.json").write_text("{")
    manifest = Manifest(
        **{
            "name": next(supply),
            "command": next(supply),
            "started": next(supply),
            "commit": next(supply),
            "dirty": True,
            "cells": ids,
        },
        **{"settings": {next(supply): next(supply)}, "bibliography": {next(supply): next(supply), "x": next(supply)}},
    )
    write(folder / "manifest.json", manifest)
    (folder / "environment.json").write_text(json.dumps({next(supply): next(supply), "torch": next(supply)}))


class Page(HTMLParser):
    """What a browser would make of the page: scripts, elements and attributes that could run something."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.inside = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.suspicious: list[str] = []
        self.text = 0
        self.policy = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag == "script":
            self.scripts.append((found, ""))
        if tag == "meta" and found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]
        wrong = {"iframe", "object", "embed", "base", "form", "link", "animate", "math", "video", "marquee", "input"}
        ours = found.get("rel") == "icon" and found.get("href") == "data:,", found.get("type") in ("search", "checkbox")
        if tag in wrong and not any(ours):
            self.suspicious.append(f"<{tag}>")
        for name, value in found.items():
            if name.startswith("on") or MARK in name:
                self.suspicious.append(f"{tag} {name}={value}")
            followed = name in ("href", "src", "xlink:href", "action", "srcdoc", "style")
            if followed and re.match(r"\s*(javascript|data:text/html)", value or "", re.IGNORECASE):
                self.suspicious.append(f"{tag} {name}={value}")

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        if self.cdata_elem == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = attributes, before + data
        elif self.cdata_elem == "style":
            if MARK in data:
                self.suspicious.append(f"style: {data[:80]}")
        else:
            self.text += data.count(MARK)

    def handle_comment(self, data):
        if MARK in data:
            self.suspicious.append(f"comment: {data[:80]}")

    def handle_decl(self, decl):
        if MARK in decl:
            self.suspicious.append(decl)


def test_the_corpus_is_large_and_the_parser_sees_it():
    """On a page that escapes nothing, all but those aimed at other readers are found."""
    assert len(set(CORPUS)) >= 40
    seen = [text for text in CORPUS if (page := Page(f'<p title="{text}">{text}</p>')).suspicious or page.scripts]
    assert len(seen) >= 38


def one_string(number):
    return [CORPUS[number]]


def rotated(number):
    return CORPUS[number:] + CORPUS[:number]


def check(folders, tmp_path):
    html = render(folders, tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.text > 10 * len(folders)  # it is there, and it is text
    assert page.suspicious == []
    shown = re.sub(r"(?s)<script.*?</script>", "", html)
    assert shown == plain(shown)  # nothing that turns the direction of writing, or that a terminal obeys
    running = [
        body for attributes, body in page.scripts if attributes.get("type") in (None, "module", "text/javascript")
    ]
    assert not [body for body in running if MARK in body]
    assert page.policy is not None and "default-src 'none'" in page.policy and "unsafe-eval" not in page.policy
    assert "'unsafe-inline'" not in re.search(r"script-src[^;]*", page.policy)[0]


def test_nothing_from_outside_becomes_markup(tmp_path):
    """Every string of the corpus in some fields of two folders; the long test has each of them in each."""
    for number in (0, 29):
        poisoned(tmp_path / f"run {number}", rotated(number))
    check([tmp_path / "run 0", tmp_path / "run 29"], tmp_path)


@pytest.mark.parametrize("format", ["csv", "json"])
def test_an_export_holds_nothing_that_a_terminal_obeys(format, tmp_path):
    poisoned(tmp_path / "run\x1b[31m", rotated(len(CORPUS) - 8))
    stream = io.StringIO()
    export(frame([tmp_path / "run\x1b[31m"]), stream, format)
    assert "?[31m" in stream.getvalue() and stream.getvalue() == plain(stream.getvalue())
    if format == "json":  # which could spell it, for whoever shows it to spell out
        assert all(
            text == plain(text)
            for row in json.loads(stream.getvalue())
            for text in row.values()
            if isinstance(text, str)
        )


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, len(CORPUS), 9))
def test_every_string_in_every_field(first, tmp_path):
    folders = []
    for number in range(first, min(first + 9, len(CORPUS))):
        folders.append(tmp_path / f"run {number}")
        poisoned(folders[-1], one_string(number))
    check(folders, tmp_path)


BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


class Browser:
    """A headless browser, which says whether anything on a page called the function that the corpus calls."""

    def __init__(self, folder):
        self.folder = folder
        if BROWSER is None:
            pytest.fail("no Chromium here, so nothing can be said of what it would run")

    def runs(self, path):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom"]
        line = [BROWSER, *flags, f"--user-data-dir={self.folder}/profile", path.as_uri()]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300)
        assert "</html>" in done.stdout, done.stderr[-500:]
        return "<title>gradestRan</title>" in done.stdout


# Whatever can be clicked, pointed at, focused or toggled is: some of the strings wait for that.
HOOK = f"""<script>
function {MARK}() {{ document.title = 'gradestRan'; }}
addEventListener('load', () => setTimeout(() => {{
  for (const each of document.querySelectorAll('a, input, details, svg *, [onmouseover], td, th')) {{
    for (const kind of ['mouseover', 'focus', 'toggle']) each.dispatchEvent(new Event(kind, {{bubbles: true}}));
    if (each.tagName === 'A' && /^javascript:/i.test(each.getAttribute('href') || '')) each.click();
  }}
}}, 500));
</script>"""


def hooked(report):
    """The report with the function for the strings to call, in place of the policy that would forbid it."""
    html = report.read_text(encoding="utf-8")
    policy = re.search(r'<meta http-equiv="?Content-Security-Policy"?[^>]*>', html)[0]
    report.write_text(html.replace(policy, HOOK, 1), encoding="utf-8")
    return report


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    return Browser(tmp_path_factory.mktemp("browser"))


@pytest.mark.long
def test_the_browser_runs_what_is_not_escaped(browser, tmp_path):
    """Each string alone on a page that escapes nothing: most run, so that silence elsewhere means something."""
    ran = []
    for number, text in enumerate(CORPUS):
        control = tmp_path / f"{number}.html"
        body = f"<textarea></textarea><p title=\"{text}\">{text}</p><p title='{text}'></p><p title={text}></p>"
        control.write_text(f"<html><head><title>x</title>{HOOK}</head><body>{body}</body></html>", encoding="utf-8")
        ran.append(browser.runs(control))
    assert sum(ran) >= 25, [text for text, did in zip(CORPUS, ran, strict=True) if not did]


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, len(CORPUS), 9))
def test_nothing_runs_in_a_browser(browser, first, tmp_path):
    """Every string in every field, as above, nine at a time; and in a page without the policy that would stop it anyway."""
    folders = []
    for number in range(first, min(first + 9, len(CORPUS))):
        folders.append(tmp_path / f"run {number}")
        poisoned(folders[-1], one_string(number))
    report = hooked(render(folders, tmp_path / "report.html"))
    assert not browser.runs(report)
    # The same page with one of the strings let through: it would have been seen.
    html, count = re.subn(r"(<body[^>]*>)", rf"\1{CORPUS[0]}", report.read_text(encoding="utf-8"), count=1)
    assert count == 1
    report.write_text(html, encoding="utf-8")
    assert browser.runs(report)
