"""What every page of this suite shares: templates, style, scripts, and the policy that lets those scripts run alone."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from benchmarks.records import plain

HERE = Path(__file__).parent


@lru_cache(maxsize=1)
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        finalize=lambda value: plain(value) if type(value) is str else value,  # what is Markup is the suite's own
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write(template: str, context: dict[str, Any], *, charts: dict[str, dict[str, Any]] | None = None) -> str:
    """A page as HTML text. ``charts`` are specifications for Vega by the name of the place that they are drawn in.

    Its policy allows the embedded scripts by their digests and nothing else: no request, no ``eval``.
    """
    scripts = [(HERE / "static" / "sortable.auto.min.js").read_text(encoding="utf-8")]
    if charts:
        from .interactive import bundle

        scripts.append(bundle())
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    html = (
        _templates()
        .get_template(template)
        .render(
            **context,
            charts={name: Markup(_inert(spec)) for name, spec in (charts or {}).items()},
            style=Markup((HERE / "static" / "report.css").read_text(encoding="utf-8")),
            scripts=[Markup(script) for script in scripts],
            policy=" ".join(f"'sha256-{digest}'" for digest in digests),
        )
    )
    return html.encode("utf-8", "replace").decode("utf-8")


def _inert(spec: dict[str, Any]) -> str:
    """JSON that can stand inside a script element: no character of it can end that or begin another."""
    text = json.dumps(spec, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
