"""Shares of the roofs, worked out by hand; and a page that shows them only where they were measured."""

from __future__ import annotations

import json
import math

from benchmarks.ceilings import facts
from reports import frame
from reports.labels import labelled
from reports.roofline import ceilings, roofline, shares
from reports.tables import load


def test_each_cell_is_under_the_lower_of_two_roofs(run_folder):
    means = labelled(frame([run_folder]))[1]
    environment = load(run_folder).environment
    roofs = ceilings(environment, "float64", "cpu")
    assert roofs == (40e9, 10e9)
    found = shares(means, {run_folder.name: environment})
    known = means[means["flops_per_gradient"] > 0]
    assert len(found) == len(known.drop_duplicates(["problem", "estimator", "num_samples", "run"])) > 0
    for row in found.itertuples():
        intensity = row.flops_per_gradient / row.bytes_moved_per_gradient
        assert math.isclose(row.roof, min(40e9, intensity * 10e9))
        assert math.isclose(row.share, row.flops_per_gradient / row.seconds_per_gradient / row.roof)
    (axes,) = roofline(found).axes[:1]
    slope, flat = axes.lines[-1].get_ydata()[:2], axes.lines[-1].get_ydata()[-1]
    assert flat == 40e9 and slope[0] < slope[1]


def test_nothing_is_shown_that_was_not_measured(run_folder):
    means = labelled(frame([run_folder]))[1]
    assert not len(shares(means, {})) and roofline(shares(means, {})).axes == []
    assert ceilings({"ceiling, float64 on cpu: GB/s copied": "fast"}, "float64", "cpu") is None


def test_a_run_notes_what_its_machine_can_do():
    noted = facts("float32", "cpu")
    assert len(noted) == 3 and all(value > 0 for value in noted.values())
    assert ceilings(json.loads(json.dumps(noted)), "float32", "cpu") is not None
