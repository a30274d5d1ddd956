"""Figures as bytes that are the same for the same figure: SVG to stand inline in a page, PDF to keep."""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter

import matplotlib
from matplotlib.figure import Figure

from .looks import RC, unalarmed

FONTS = "DejaVu Sans, Verdana, sans-serif"
"""The first is what matplotlib measured with; the second has the same widths and is on most desks."""

DPI = 200
"""Of what is drawn as pixels; lines and text are none."""


def settle(figure: Figure) -> None:
    """Lay the figure out once, so that writing it in two formats does not lay it out twice.

    The engine is taken away, not replaced by "none": with any engine at all, each file is drawn twice.
    """
    with matplotlib.rc_context(RC), unalarmed(), _quiet():
        engine = figure.get_layout_engine()
        if engine is not None:
            engine.execute(figure)
        figure.set_layout_engine(None)


def svg(figure: Figure, prefix: str) -> str:
    """The figure as an ``<svg>`` element, its identifiers starting with ``prefix`` so that many can share one page."""
    text = _save(figure, "svg", {"Date": None, "Creator": None}).decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = text.replace("font-family: 'DejaVu Sans'; ", "")
    used = dict.fromkeys(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text))
    short = {name: f"{prefix}{_letters(place)}" for place, name in enumerate(used)}

    def localise(tag: re.Match[str]) -> str:
        """Inside tags only: what stands between them is text that somebody wrote."""
        inside = re.sub(r' id="([^"]+)"', lambda name: f' id="{short[name[1]]}"' if name[1] in short else "", tag[0])
        inside = re.sub(r'xlink:href="#([^"]+)"', lambda name: f'href="#{short[name[1]]}"', inside)
        inside = re.sub(r"url\(#([^)]+)\)", lambda name: f"url(#{short[name[1]]})", inside)
        inside = re.sub(r' transform="rotate\(-?0 [^"]*"', "", inside)
        return re.sub(r"(\d\.\d)\d+", r"\1", inside)  # tenths of a point are enough

    text = re.sub(r"<[^<>]*>", localise, _with_classes(text, prefix)).replace("<svg", f'<svg font-family="{FONTS}"', 1)
    text = re.sub(r"<g\s*/>", "", text)
    text = re.sub(r"<g>\s*(<(?:path|use|text)[^<>]*(?:/>|>[^<>]*</text>))\s*</g>", r"\1", text)
    return _joined(re.sub(r"\s*\n\s*", "\n", text).strip(), prefix)


def _joined(text: str, prefix: str) -> str:
    """Neighbouring strokes of one style become one path: a series' error bars, a curve's pieces."""
    text = re.sub(r' d="([^"<>]*)"', lambda path: f' d="{_tight(path[1])}"', text)
    open_ = set(re.findall(rf"\.({prefix}_\d+)\{{fill: none", text))
    stroke = re.compile(r'<path d="([^"]*)"( clip-path="[^"]*" class="([^"]*)"/>)')
    lines: list[str] = []
    last: re.Match[str] | None = None
    for line in text.split("\n"):
        found = stroke.fullmatch(line)
        if found and last and found[2] == last[2] and found[3] in open_:
            lines[-1] = lines[-1].removesuffix(f'"{found[2]}') + f'{found[1]}"{found[2]}'
            continue
        lines.append(line)
        last = found
    return "\n".join(lines)


def _tight(path: str) -> str:
    """Without spaces that separate nothing, and an upright line as one."""
    path = re.sub(r"\s*([A-Za-z])\s*", r"\1", path.strip())
    return re.sub(r"M([\d.-]+) ([\d.-]+)L\1 ([\d.-]+)$", r"M\1 \2V\3", path)


def _letters(place: int) -> str:
    """a, b, ... z, ba, bb, ...: short names for what recurs a thousand times."""
    head, tail = divmod(place, 26)
    return (_letters(head) if head else "") + chr(ord("a") + tail)


def _with_classes(text: str, prefix: str) -> str:
    """Styles that recur become classes: a third of the size.

    Rules hold for the whole page, so names are apart from those of other figures: f1_12 is not f11_2.
    """
    counts = Counter(re.findall(r' style="([^"<>]+)"', text))
    classes = {style: f"{prefix}_{index}" for index, (style, count) in enumerate(counts.items()) if count > 2}
    rules = "".join(f".{name}{{{style}}}" for style, name in classes.items())

    def shorten(tag: re.Match[str]) -> str:
        style = re.search(r' style="([^"<>]+)"', tag[0])
        if style is None or style[1] not in classes:
            return tag[0]
        return tag[0].replace(style[0], f' class="{classes[style[1]]}"')

    return re.sub(r"<[^<>]*>", shorten, text).replace("<defs>", f"<defs><style>{rules}</style>", 1)


def pdf(figure: Figure) -> bytes:
    """The figure as a PDF file."""
    return _save(figure, "pdf", {"CreationDate": None, "Producer": None, "Creator": None})


def _save(figure: Figure, format: str, metadata: dict[str, None]) -> bytes:
    stream = io.BytesIO()
    with matplotlib.rc_context(RC), unalarmed(), _quiet():
        figure.savefig(stream, format=format, metadata=metadata, dpi=DPI)
    return stream.getvalue()


def _quiet() -> warnings.catch_warnings:
    """Names come from outside, and may hold characters that the font lacks."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
