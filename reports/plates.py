"""Figures on a page: drawing, caption, what a listener hears, data, and the lines that draw it again."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from .statistics import COSTS
from .tables import to_csv
from .vector import pdf, settle, svg

PLOTTED = {
    "cost": ["label", "block", "num_samples", "target", "verdict", "variance", "variance_low", "variance_high", *COSTS],
    "bias": ["label", "block", "num_samples", "seed", "verdict", "bias_z", "detectable_bias", "reference_norm"],
    "snr": ["label", "block", "num_samples", "snr", "snr_low", "snr_high", "snr_floor", "snr_slope_theory"],
    "speed": ["title", "label", "num_samples", "gradients_per_second", "peak_bytes"],
}
"""Columns of the table that belong to a kind of figure; every column for other kinds."""

SCRIPT = """\
from reports import figures, frame

table = frame([{runs}])  # run folders
figure = figures.{call}
figure.savefig("{name}.pdf")
"""


@dataclass
class Plate:
    """A figure on the page.

    ``spare``: when its drawing may be left out of a file that grew too large. 0: never; 1: first, because others say
    more; 2: after the CSVs; 3: last of all.
    """

    name: str
    drawing: str
    caption: str
    alt: str
    pdf: str = ""
    csv: str = ""
    script: str = ""
    spare: int = 0


class Plates:
    """Draws figures and keeps them, so that the heaviest parts can be left out of a file that grew too large."""

    def __init__(self, runs: list[str]) -> None:
        self.runs = ", ".join(repr(run) for run in runs)
        self.all: list[Plate] = []
        self.dropped = 0

    def add(
        self,
        name: str,
        kind: str,
        draw: Callable[[], Figure],
        data: pd.DataFrame,
        caption: str,
        alt: str,
        call: str = "",
        spare: int = 0,
    ) -> Plate:
        """Draw a figure. ``call`` is what draws it from ``table``, as :data:`SCRIPT` has it."""
        figure = draw()
        settle(figure)
        columns = [column for column in PLOTTED.get(kind, list(data.columns)) if column in data]
        plate = Plate(
            name=name,
            drawing=Markup(svg(figure, f"f{len(self.all)}")),
            caption=caption,
            alt=alt,
            pdf=data_uri(pdf(figure), "application/pdf"),
            csv=data_uri(to_csv(data[columns].drop_duplicates()).encode("utf-8", "replace"), "text/csv"),
            script=SCRIPT.format(runs=self.runs, call=call, name=name) if call else "",
            spare=spare,
        )
        self.all.append(plate)
        return plate

    def lighten(self, excess: int, last: bool = False) -> int:
        """Leave out the heaviest parts until nothing is too much; return what still is.

        PDFs first, then drawings that can be spared and CSVs; with ``last``, whatever may go at all.
        """
        order = [("drawing", 3)] if last else [("pdf", 0), ("drawing", 1), ("csv", 0), ("drawing", 2)]
        for part, spare in order:
            known = [one for one in self.all if getattr(one, part) and (part != "drawing" or one.spare == spare)]
            for plate in sorted(known, key=lambda one: -len(getattr(one, part))):
                if excess <= 0:
                    return excess
                excess -= len(getattr(plate, part))
                setattr(plate, part, "")
                self.dropped += 1
        return excess


def data_uri(content: bytes, kind: str) -> str:
    """A file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
