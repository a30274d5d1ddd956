"""The first paragraph, recomputed from the records."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from scipy.stats import norm

from benchmarks.records import read_cells
from benchmarks.schema import Record
from reports import frame
from reports.labels import labelled
from reports.opening import claims, opening


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, fabricate: SimpleNamespace) -> Path:
    run = tmp_path_factory.mktemp("opening")
    for estimator in ("iwae", "dreg", "reparameterization", "sticking-the-landing", "jackknife", "sumo[tail=1,cap=0]"):
        for k in (2, 8, 64):
            fabricate.cell(run, fabricate.problem, estimator, k)
    return run


@pytest.fixture(scope="module")
def means(folder: Path) -> pd.DataFrame:
    return labelled(frame([folder]))[1]


def work(record: Record) -> tuple[float, float]:
    """Logarithm of variance x seconds of a record's phi block, and its standard error from the stored intervals."""
    (block,) = (each for each in record.blocks if each.block == "phi")
    cost = record.cost
    spreads = [math.log(high / low) / (2 * 1.959963984540054) for low, high in
               (block.variance_interval, cost.seconds_interval)]  # fmt: skip
    return math.log(block.variance * cost.seconds_per_gradient), math.hypot(*spreads)


def test_claims_are_ratios_of_work_with_joint_intervals(folder: Path, means: pd.DataFrame) -> None:
    found = claims(means)
    cells = {(r.cell.estimator, r.cell.num_samples): r for r in read_cells(folder)[0].values()}
    assert {(one.estimator, one.usual) for one in found} == {
        ("dreg", "iwae"),
        ("sticking-the-landing", "reparameterization"),
    }  # the jackknife is biased and alone, sumo has no variance
    for one in found:
        assert one.num_samples == 8
        (a, s), (b, t) = (work(cells[name, 8]) for name in (one.estimator, one.usual))
        reach = norm.isf(0.025 / len(found)) * math.hypot(s, t)
        assert one.ratio == pytest.approx(math.exp(a - b), rel=1e-9)
        assert (one.low, one.high) == pytest.approx((math.exp(a - b - reach), math.exp(a - b + reach)), rel=1e-6)


def test_the_words_carry_those_numbers(means: pd.DataFrame, fabricate: SimpleNamespace) -> None:
    text = " ".join(opening(means, {fabricate.problem: "gaussian-1d"}))
    assert text.startswith("On gaussian-1d, ")
    for one in claims(means):
        shown = re.search(
            rf"{one.estimator} needs (\S+) \[(\S+), (\S+)\](?: ×10(\S+))? times the time of {one.usual}", text
        )
        power = int((shown[4] or "⁰").translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")))
        numbers = [float(shown[i]) * 10.0**power for i in (1, 2, 3)]
        assert numbers == pytest.approx([one.ratio, one.low, one.high], rel=0.03)
    assert "jackknife in θ and φ is biased here, as declared" in text
    assert "sumo has no variance that could be established" in text
    assert "these 2 intervals hold together at 95 %" in text


def test_a_single_claim_is_not_told_as_many(means: pd.DataFrame) -> None:
    one = means[means["estimator"] != "dreg"]
    assert len(claims(one)) == 1
    assert "; the interval holds at 95 %" in " ".join(opening(one, {problem: "p" for problem in one["problem"]}))


def test_what_cannot_be_told_apart_is_not_called_faster(means: pd.DataFrame) -> None:
    wide = means.assign(work_low=means["work_low"] / 50, work_high=means["work_high"] * 50)
    text = " ".join(opening(wide, {problem: "p" for problem in means["problem"]}))
    assert "needs" not in text
    assert "no estimator of elbo was found to need less time than reparameterization (1 compared)" in text


def test_joint_intervals_cover_at_their_stated_rate(means: pd.DataFrame) -> None:
    """All true ratios lie in their intervals in at least 95 % of 200 simulated reports (binomial, 4 sigma)."""
    import numpy as np

    generator = np.random.default_rng(3)
    rows = (
        means[(means["block"] == "phi") & (means["num_samples"] == 8) & (means["target"] == "elbo")]
        .iloc[[0] * 6]
        .copy()
    )
    rows["estimator"] = ["reparameterization", *"abcde"]
    rows["label"] = rows["estimator"]
    rows.index = range(6)
    error, hits = 0.04, 0
    for _ in range(200):
        value = np.exp(generator.normal(size=6) * error)
        drawn = rows.assign(work_normalised_variance=value, work_low=value * math.exp(-1.959963984540054 * error),
                            work_high=value * math.exp(1.959963984540054 * error))  # fmt: skip
        found = claims(drawn)
        assert len(found) == 5
        hits += all(one.low <= 1 <= one.high for one in found)
    assert hits >= 200 * 0.95 - 4 * math.sqrt(200 * 0.95 * 0.05)


def test_nothing_to_say_is_not_said(tmp_path: Path) -> None:
    table, means, names = labelled(frame([tmp_path]))
    assert opening(means, names) == [] and len(table) == 0
