"""Figures on a page: drawing, caption, what a listener hears, data, and the lines that draw it again."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
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
    "roofline": ["title", "label", "num_samples", "dtype", "device", "intensity", "flops_per_second", "roof", "share"],
    "speed": ["title", "label", "num_samples", "gradients_per_second", "peak_bytes"],
}
"""Columns of the table that belong to a kind of figure; every column for other kinds."""

ROWS = 10_000
"""Rows that a file on the page has at most: 100 to 200 bytes each. Those of a hundred thousand cells would take 40 MB."""

SCRIPT = """\
from reports import figures, frame

table = frame([{runs}])  # run folders
figure = figures.{call}
figure.savefig("{name}.pdf")
"""


@dataclass
class Plate:
    """A figure on the page.

    ``spare``: whether a file that grows too large does without its drawing. 0: never; 1: first, because others say more; 2: after
    the CSVs; 3: last of all.
    """

    name: str
    caption: str
    alt: str
    script: str
    spare: int
    prefix: str
    draw: Callable[[], Figure]
    data: pd.DataFrame | None
    figure: Figure | None = None
    drawing: str = ""
    pdf: str = ""
    csv: str = ""

    def drawn(self) -> int:
        """Draw it, and say how many bytes that takes."""
        self.figure = self.draw()
        settle(self.figure)
        self.drawing = Markup(svg(self.figure, self.prefix))
        return len(self.drawing)


class Plates:
    """The figures of a page, drawn in the order of what they say, until the page is as large as it may be.

    Nothing is drawn or written only to be left out. ``dropped`` counts what is not there.
    """

    def __init__(self, runs: list[str]) -> None:
        self.runs = ", ".join(repr(run) for run in runs)
        self.all: list[Plate] = []
        self.dropped = 0

    def add(
        self,
        name: str,
        kind: str,
        draw: Callable[[], Figure],
        data: pd.DataFrame | None,
        caption: str,
        alt: str,
        call: str = "",
        spare: int = 0,
    ) -> Plate:
        """A figure that is to be drawn; one without ``data`` has no CSV. ``call`` draws it from ``table``, as in :data:`SCRIPT`."""
        columns = (
            [column for column in PLOTTED.get(kind, list(data.columns)) if column in data] if data is not None else []
        )
        script = SCRIPT.format(runs=self.runs, call=call, name=name) if call else ""
        told = None if data is None else data[columns]
        plate = Plate(name, caption, alt, script, spare, f"f{len(self.all)}", draw, told)
        self.all.append(plate)
        return plate

    def draw_what_must_be(self) -> int:
        """The drawings without which the page says less; gives their bytes."""
        return sum(plate.drawn() for plate in self.all if plate.spare in (0, 3))

    def fill(self, room: int) -> None:
        """Into so many bytes: drawings that can be spared, CSVs, further drawings, PDFs; where there is none, less."""
        for plate in sorted(self.all, key=lambda one: -len(one.drawing)):
            if room < 0 and plate.spare == 3 and plate.drawing:
                room += len(plate.drawing)
                plate.drawing, plate.figure = "", None
                self.dropped += 1
        room = self._draw(2, room)
        short = [plate for plate in self.all if plate.data is None or len(plate.data) <= ROWS]
        self.dropped += len(self.all) - len(short)
        room = self._enclose("csv", _csv, short, room)
        room = self._draw(1, room)
        known = [plate for plate in self.all if plate.figure is not None]
        self.dropped += len(self.all) - len(known)
        self._enclose("pdf", _pdf, sorted(known, key=lambda one: len(one.drawing)), room)

    def _draw(self, spare: int, room: int) -> int:
        """Up to the first that does not fit."""
        left = [plate for plate in self.all if plate.spare == spare]
        while left and room > 0 and room >= (size := left[0].drawn()):
            room -= size
            del left[0]
        for plate in left:
            plate.drawing, plate.figure = "", None
        self.dropped += len(left)
        return room

    def _enclose(self, part: str, make: Callable[[Plate], str], plates: Sequence[Plate], room: int) -> int:
        """Up to the first that does not fit."""
        for place, plate in enumerate(plates):
            made = make(plate) if room > 0 else ""
            if room <= 0 or len(made) > room:
                self.dropped += len(plates) - place
                return room
            room -= len(made)
            setattr(plate, part, made)
        return room


def _csv(plate: Plate) -> str:
    if plate.data is None:
        return ""
    return data_uri(to_csv(plate.data.drop_duplicates()).encode("utf-8", "replace"), "text/csv")


def _pdf(plate: Plate) -> str:
    assert plate.figure is not None
    return data_uri(pdf(plate.figure), "application/pdf")


def data_uri(content: bytes, kind: str) -> str:
    """A file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
