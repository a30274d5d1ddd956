"""What is computed from the table, against numbers worked out here."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from reports import frame
from reports.statistics import beside, holm, over_seeds, pareto, rank_groups, ratio, slopes, weighted_line

PLACE = {
    "run": "r", "problem": "p", "library": "gradest", "estimator": "e", "block": "phi", "dtype": "float64",
    "device": "cpu",
    "compiled": False, "matmul_precision": "highest", "status": "ok", "target": "elbo", "target_key": "", "verdict": "PASS", "variance_exists": True,
    "snr_slope_theory": 0.5, "tail_ratio": 0.8, "counterpart": None, "unbiased": None,
    "reference_standard_error": math.nan, "reference_norm": math.nan, "exact_variance": math.nan,
}  # fmt: skip


def rows(*differences: dict) -> pd.DataFrame:
    return pd.DataFrame([{**PLACE, **one} for one in differences])


def test_slope_of_a_power_law_is_recovered() -> None:
    ks = [1, 4, 16, 64, 256]
    law = [
        {"num_samples": k, "snr": 2 * k**0.5, "snr_low": 1.9 * k**0.5, "snr_high": 2.1 * k**0.5, "snr_floor": 0.01}
        for k in ks
    ]
    fit = slopes(rows(*law)).iloc[0]
    assert fit["slope"] == pytest.approx(0.5, abs=1e-12)
    assert fit["intercept"] == pytest.approx(math.log(2), abs=1e-12)
    # equal errors s on x = 0, 1, 2, 3, 4 (times log 4): standard error s / sqrt(10) / log 4
    half = math.log(2.1 / 1.9) / 2 / math.sqrt(10) / math.log(4)
    assert fit["slope_high"] - fit["slope"] == pytest.approx(half, rel=1e-9)
    assert (fit["k_low"], fit["k_high"], fit["left_out"]) == (1, 256, 0)
    assert math.isnan(fit["slope_exact"])
    for one in law:  # exactly known: |g| = 3, variance K^-0.8, so an exact slope of 0.4
        one |= {"unbiased": True, "reference_standard_error": 0.0, "reference_norm": 3.0}
        one["exact_variance"] = one["num_samples"] ** -0.8
    assert slopes(rows(*law)).iloc[0]["slope_exact"] == pytest.approx(0.4, abs=1e-12)
    law[2]["reference_standard_error"] = 0.1  # a long run is not exact
    assert math.isnan(slopes(rows(*law)).iloc[0]["slope_exact"])


def test_slopes_leave_out_what_is_near_the_floor_and_what_bends() -> None:
    ks = [1, 2, 4, 8, 16, 32]
    snr = [5.0, 5.0, 1.0, 2.0, 4.0, 8.0]  # flat at first, then slope 1
    law = [
        {"num_samples": k, "snr": s, "snr_low": s * 0.98, "snr_high": s * 1.02, "snr_floor": 0.1}
        for k, s in zip(ks, snr, strict=True)
    ]
    fit = slopes(rows(*law)).iloc[0]
    assert fit["slope"] == pytest.approx(1.0, abs=1e-9)
    assert (fit["k_low"], fit["left_out"]) == (4, 2)
    for one in law[3:]:
        one["snr_floor"] = one["snr"] / 2.9
    assert slopes(rows(*law[2:])).empty  # one K left above three times the floor


def test_slope_intervals_cover_at_their_stated_rate() -> None:
    generator = np.random.default_rng(5)
    x, error = np.log([1, 4, 16, 64, 256]), np.array([0.05, 0.04, 0.03, 0.04, 0.05])
    fits = [weighted_line(x, 0.5 * x + generator.normal(size=5) * error, error) for _ in range(2000)]
    covered = sum(fit["slope_low"] <= 0.5 <= fit["slope_high"] for fit in fits)
    assert covered >= 0.95 * 2000 - 4 * math.sqrt(2000 * 0.05 * 0.95)


def test_ratio_interval_is_the_delta_method_on_logarithms() -> None:
    value, low, high, p = ratio((6.0, 5.0, 7.2), (2.0, 1.8, 20 / 9))
    error = math.hypot(math.log(7.2 / 5.0), math.log(20 / 9 / 1.8)) / (2 * 1.959963984540054)
    assert value == 3.0
    assert math.log(high / 3) == pytest.approx(1.959963984540054 * error)
    assert math.log(3 / low) == pytest.approx(1.959963984540054 * error)
    assert p == pytest.approx(math.erfc(math.log(3) / error / math.sqrt(2)))
    assert all(math.isnan(part) for part in ratio((0.0, 0.0, 0.0), (1.0, 0.9, 1.1)))


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])


def test_rank_groups_never_part_what_cannot_be_told_apart() -> None:
    def one(name: str, value: float, spread: float) -> dict:
        return {
            "estimator": name,
            "num_samples": 1,
            "variance": value,
            "variance_low": value / spread,
            "variance_high": value * spread,
        }

    # a and c can be told apart, but b hangs with both: one group; d stands alone; e is biased, f has another target
    table = rows(
        one("a", 1.0, 1.1),
        one("b", 1.12, 1.1),
        one("c", 1.3, 1.1),
        one("d", 9.0, 1.1),
        one("e", 0.1, 1.1),
        one("f", 0.1, 1.1),
    )
    table.loc[4, "verdict"] = "BIASED"
    table.loc[5, "target"] = "iwae"
    groups = rank_groups(table, "variance")
    assert groups[:4].tolist() == [1, 1, 1, 2]
    assert groups[4:].isna().all()


def test_pareto_front_by_hand() -> None:
    points = {"a": (1.0, 4.0), "b": (2.0, 2.0), "c": (3.0, 3.0), "d": (4.0, 1.0), "e": (0.5, 0.5)}
    table = rows(
        *({"estimator": name, "num_samples": 1, "seconds": c, "variance": v} for name, (c, v) in points.items())
    )
    table.loc[4, "variance_exists"] = False
    assert pareto(table, "seconds").tolist() == [True, True, False, True, False]
    assert not pareto(table[table["estimator"] == "a"], "seconds").any()


def test_means_over_seeds_join_intervals_in_quadrature(run_folder: Path) -> None:
    table = frame([run_folder])
    means = over_seeds(table)
    row = means[(means["estimator"] == "iwae") & (means["block"] == "phi") & (means["num_samples"] == 8)].iloc[0]
    own = table[
        table["id"].notna() & (table["estimator"] == "iwae") & (table["block"] == "phi") & (table["num_samples"] == 8)
    ]
    own = own[own["problem"] == row["problem"]]
    assert row["seeds"] == len(own) == 2
    assert row["variance"] == pytest.approx(own["variance"].mean())
    down = math.sqrt(((own["variance"] - own["variance_low"]) ** 2).sum()) / 2
    assert row["variance_low"] == pytest.approx(row["variance"] - down)
    assert row["work_normalised_variance"] == pytest.approx(row["variance"] * row["seconds_per_gradient"])
    assert row["target_key"] == "8"


def test_pyro_beside_ours(run_folder: Path) -> None:
    means = over_seeds(frame([run_folder]))
    pairs = beside(means)
    assert set(pairs["counterpart"]) == {"reparameterization"}
    assert len(pairs) == 2 * 3 * 3  # problems, K, blocks
    assert set(pairs["expectation"]) == {"agree"}
    pair = pairs[(pairs["block"] == "phi") & (pairs["num_samples"] == 8)].iloc[0]
    chosen = means[(means["problem"] == pair["problem"]) & (means["block"] == "phi") & (means["num_samples"] == 8)]
    theirs, ours = (chosen[chosen["estimator"] == name].iloc[0] for name in ("pyro-trace-elbo", "reparameterization"))
    assert pair["variance_ratio"] == pytest.approx(theirs["variance"] / ours["variance"])
    assert pair["memory_ratio"] == pytest.approx(theirs["peak_bytes"] / ours["peak_bytes"])
    assert (pair["worst_direction"], pair["bias_z"]) == (theirs["worst_direction"], theirs["bias_z"])
    assert theirs["worst_direction"] and theirs["peak_bytes"] > 0
    assert pair["seconds_ratio_low"] < pair["seconds_ratio"] < pair["seconds_ratio_high"]
    changed = means.copy()
    changed["verdict"] = changed["library"].map({"pyro": "BIASED"}).fillna("INCONCLUSIVE")
    assert set(beside(changed)["expectation"]) == {"differ"}
