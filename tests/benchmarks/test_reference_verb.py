"""``gradest reference``: exact values from the command line, against closed forms written out here."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm


def reference(gradest, *arguments):
    code, out, err = gradest("reference", *arguments, "--json")
    assert (code, err) == (0, "")
    row = json.loads(out)
    assert row.keys() >= {"value", "gradient", "standard_error", "method"} and row["standard_error"] == 0
    return row


def test_reference_of_gaussian_1d_is_the_closed_form(gradest):
    m, s, x, a = 0.7, 0.6, 1.9, -0.4
    spec = f"gaussian-1d[loc={m},scale={s},x={x},prior_loc={a}]"
    row = reference(gradest, spec, "--target", "log_marginal")
    assert row["value"] == pytest.approx(norm(a, math.sqrt(2)).logpdf(x), abs=1e-12)
    assert row["gradient"]["theta"]["prior_loc"] == pytest.approx([(x - a) / 2], abs=1e-12)
    assert row["gradient"]["phi"] == {"loc": [0.0], "log_scale": [0.0]}
    row = reference(gradest, spec)  # elbo
    elbo = -math.log(2 * math.pi) - ((m - a) ** 2 + (x - m) ** 2 + 2 * s**2) / 2 + norm(0, s).entropy()
    assert row["value"] == pytest.approx(float(elbo), abs=1e-12)
    assert row["gradient"]["theta"]["prior_loc"] == pytest.approx([m - a], abs=1e-12)
    assert row["gradient"]["phi"]["loc"] == pytest.approx([(a - m) + (x - m)], abs=1e-12)
    assert row["gradient"]["phi"]["log_scale"] == pytest.approx([1 - 2 * s**2], abs=1e-12)
    assert reference(gradest, spec, "--target", "iwae", "-K", "1")["value"] == pytest.approx(row["value"], abs=1e-9)


def test_reference_of_linear_gaussian_from_the_printed_parameters(gradest):
    row = reference(
        gradest, "linear-gaussian[dim=3,data_dim=4,points=5,seed=2,noise_scale=0.7]", "--target", "log_marginal"
    )
    theta, x = row["parameters"]["theta"], np.array(row["data"])
    A, b, s = np.array(theta["weight"]), np.array(theta["bias"]), math.exp(theta["log_noise_scale"][0])

    def log_marginal(bias):
        return multivariate_normal(bias, A @ A.T + s**2 * np.eye(4)).logpdf(x).mean()

    assert x.shape == (5, 4) and row["value"] == pytest.approx(log_marginal(b), abs=1e-10)
    slope = [(log_marginal(b + h) - log_marginal(b - h)) / 2e-5 for h in 1e-5 * np.eye(4)]
    np.testing.assert_allclose(row["gradient"]["theta"]["bias"], slope, atol=1e-7)
    for name, leaf in {**row["parameters"]["theta"], **row["parameters"]["phi"]}.items():
        block = "theta" if name in theta else "phi"
        assert np.shape(row["gradient"][block][name]) == np.shape(leaf)


def test_reference_in_lines(gradest):
    code, out, _ = gradest("reference", "gaussian-1d", "--target", "iwae", "-K", 5)
    assert code == 0 and [line.split(":")[0] for line in out.splitlines()] == [
        *("value", "gradient", "standard_error", "method")
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--target", "jackknife[setting=2]", "-K", 2), "from 1 to K - 1 (K is 2), not '2'"),
        (("--target", "elbo", "-K", 3), "elbo is the same for every number of samples: leave --num-samples 3 away"),
        (("--target", "iwae", "-K", 0), "--num-samples must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_line(gradest, arguments, said):
    code, out, err = gradest("reference", "gaussian-1d", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and said in err


@pytest.mark.parametrize(
    ("spec", "target", "K", "said"),
    [
        ("sigmoid-belief-net[dim=2,data_dim=3,seed=6,points=2]", "iwae", 60, "K = 8 is the largest at which"),
        ("banana[noise_scale=0.1]", "iwae", 2, "K = 1 is the largest at which"),
        (
            "gaussian-1d[scale=2]",
            "f_divergence[setting=chi-square]",
            None,
            "its mean does not exist, or the quadrature",
        ),
    ],
)
def test_a_value_that_is_not_known_is_refused_for_one_reason(gradest, spec, target, K, said):
    code, out, err = gradest("reference", spec, "--target", target, *(("-K", K) if K else ()))
    assert (code, out, err.count("\n")) == (2, "", 1) and said in err


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("rainforth[dim=2,points=64,perturbation=1]", "is too wide to interpolate at K=10"),
        ("linear-gaussian[noise_scale=1e-5]", "too wide, or too far off: its integrals take"),
        ("gaussian-1d[scale=1e6]", "the two grids give -0.0"),
    ],
)
def test_integrals_that_cannot_be_vouched_for_are_refused(gradest, spec, said):
    code, out, err = gradest("reference", spec, "--target", "iwae", "-K", 10)
    assert (code, out, err.count("\n")) == (2, "", 1) and said in err
