"""Stored records in, tables, figures and one self-contained HTML report out.

Reads run folders through :mod:`benchmarks.records` and nothing else: no torch, no estimators, no network.

Example:
    >>> from pathlib import Path
    >>> from reports import frame, render
    >>> frame([]).empty
    True
"""

from __future__ import annotations

from .render import render
from .tables import export, frame

__all__ = ["export", "frame", "render"]
