"""The chart that answers: its data are the records', its scripts need no eval, and it is the same every time."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from reports import frame
from reports.interactive import EMBED, bundle, cost_chart
from reports.labels import labelled
from reports.statistics import COSTS


@pytest.fixture(scope="module")
def means(run_folder: Path) -> pd.DataFrame:
    return labelled(frame([run_folder]))[1]


def listed(spec: dict, name: str) -> list[str]:
    return next(each["value"] for each in spec["params"] if each["name"] == name)


def test_every_point_is_a_record(means: pd.DataFrame) -> None:
    spec = cost_chart(means)
    assert spec is not None
    drawn = means[(means["block"] != "value") & (means["variance"] > 0) & means["evaluations_per_gradient"].notna()]
    points = spec["data"]["values"]
    assert len(points) == len(drawn) > 40
    labels, problems = listed(spec, "labels"), listed(spec, "problems")
    for point in points:
        row = drawn[
            (drawn["label"] == labels[point["e"]]) & (drawn["title"] == problems[point["p"]])
            & (drawn["num_samples"] == point["k"]) & (drawn["block"] == {"φ": "phi", "θ": "theta"}[point["b"]])
        ]  # fmt: skip
        assert len(row) == 1
        row = row.iloc[0]
        assert [point["v"], point["l"], point["h"]] == pytest.approx(
            [row["variance"], row["variance_low"], row["variance_high"]], rel=1e-3
        )
        assert point["c"] == pytest.approx([row[meter] for meter in COSTS], rel=1e-3)
        assert point["s"] == pytest.approx([row["seconds_low"], row["seconds_high"]], rel=1e-3)
        assert point["d"] == row["verdict"]


def test_filters_and_hover_are_declared(means: pd.DataFrame) -> None:
    spec = cost_chart(means)
    bound = {each["name"]: each["bind"] for each in spec["params"] if isinstance(each.get("bind"), dict)}
    assert set(bound) == {"problem", "block", "meter", "kin", "aim", "chosen"}
    assert all(len(each["options"]) == len(each["labels"]) for each in bound.values())
    text = json.dumps(spec)
    assert all(f'"title": "{title}"' in text for title in ("K", "variance", "cost", "verdict"))


def test_the_specification_is_the_same_every_time(means: pd.DataFrame) -> None:
    assert json.dumps(cost_chart(means)) == json.dumps(cost_chart(means))


def test_the_bundle_is_one_script_with_the_interpreter() -> None:
    script = bundle()
    assert len(script) < 1_000_000 and "</script" not in script.lower()
    assert "ast:true" in script.replace(" ", "").replace("!0", "true") and "ast: true" in EMBED


def test_nothing_measured_gives_no_chart(means: pd.DataFrame) -> None:
    assert cost_chart(means.assign(variance=float("nan"))) is None
