"""Figures as bytes that are the same for the same figure: SVG to stand inline in a page, PDF to keep."""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter

import matplotlib
from matplotlib.figure import Figure

from .figures import RC

FONTS = "DejaVu Sans, Verdana, sans-serif"
"""The first is what matplotlib measured with; the second has the same widths and is on most desks."""


def settle(figure: Figure) -> None:
    """Lay the figure out once, so that writing it in two formats does not lay it out twice."""
    with matplotlib.rc_context(RC), _quiet():
        figure.draw_without_rendering()
    figure.set_layout_engine("none")


def svg(figure: Figure, prefix: str) -> str:
    """The figure as an ``<svg>`` element, its identifiers starting with ``prefix`` so that many can share one page."""
    text = _save(figure, "svg", {"Date": None, "Creator": None}).decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = text.replace("font-family: 'DejaVu Sans'; ", "")
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text))

    def localise(tag: re.Match[str]) -> str:
        """Inside tags only: what stands between them is text that somebody wrote."""
        inside = re.sub(r' id="([^"]+)"', lambda name: f' id="{prefix}-{name[1]}"' if name[1] in used else "", tag[0])
        inside = re.sub(r'(xlink:href="#|url\(#)', rf"\1{prefix}-", inside)
        inside = re.sub(r' transform="rotate\(-?0 [^"]*"', "", inside)
        return re.sub(r"(\d\.\d)\d+", r"\1", inside)  # tenths of a point are enough

    text = re.sub(r"<[^<>]*>", localise, _with_classes(text, prefix)).replace("<svg", f'<svg font-family="{FONTS}"', 1)
    text = re.sub(r"<g\s*/>", "", text)
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def _with_classes(text: str, prefix: str) -> str:
    """Styles that recur become classes: a third of the size."""
    counts = Counter(re.findall(r' style="([^"<>]+)"', text))
    classes = {style: f"{prefix}-{index}" for index, (style, count) in enumerate(counts.items()) if count > 2}
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
    with matplotlib.rc_context(RC), _quiet():
        figure.savefig(stream, format=format, metadata=metadata)
    return stream.getvalue()


def _quiet() -> warnings.catch_warnings:
    """Names come from outside, and may hold characters that the font lacks."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
