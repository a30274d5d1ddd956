"""The unbiasedness test itself, on synthetic estimates whose law is known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import estimators
from benchmarks.problems import Gaussian1D
from estimators import testing
from estimators.testing import assert_unbiased, check_stream, check_unbiased, exact_expectation, gauss_hermite
from estimators.testing_dependence import dependence
from estimators.testing_tails import heavy_tail

PARAMETERS = {"theta": {"a": torch.zeros(1, dtype=torch.float64)}, "phi": {"b": torch.zeros(3, dtype=torch.float64)}}
TRUTH = {
    "value": -2.0,
    "theta": {"a": torch.tensor([0.7], dtype=torch.float64)},
    "phi": {"b": torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)},
}
MEAN = torch.tensor([-2.0, 0.7, 1.0, -0.5, 0.3], dtype=torch.float64)


def streams(make, seed):
    """A source of independent endless iterators of batches, each with a generator of its own."""
    seeds = itertools.count(seed * 1000)

    def stream():
        generator = torch.Generator().manual_seed(next(seeds))
        while True:
            yield make(generator)

    return stream


def normal(generator, rows=4096):
    return MEAN + torch.randn(rows, 5, generator=generator, dtype=torch.float64)


def skewed(generator, rows=4096):
    """Exponential noise, skewness 2, mean zero."""
    uniform = torch.rand(rows, 5, generator=generator, dtype=torch.float64)
    return MEAN - torch.log1p(-uniform) - 1


def outcome(make, seed=0, truth=TRUTH, **settings):
    return check_stream(streams(make, seed), PARAMETERS, truth, pilot=8192, **settings)


@pytest.mark.parametrize("make", [normal, skewed])
def test_right_ones_pass(make):
    """60 runs; the stated false-alarm rate is 1e-9 each, so one BIASED here is a defect."""
    found = [outcome(make, seed).outcome for seed in range(60)]
    assert found == ["PASS"] * 60


@pytest.mark.parametrize("make", [normal, skewed])
@pytest.mark.parametrize("column", range(5))
def test_a_bias_of_the_stated_effect_is_found(make, column):
    """0.05 of a standard deviation in one coordinate; a miss has probability 0.01, so two in 12 happen once in 150."""
    shift = torch.zeros(5, dtype=torch.float64)
    shift[column] = 0.07 if make is skewed else 0.052  # skewed estimates are tested for a larger effect: 0.2 / skewness
    found = [outcome(lambda g, m=make: m(g) + shift, seed).outcome for seed in range(12)]
    assert found.count("BIASED") >= 10, found


def test_one_round_alarms_no_more_often_than_it_says(monkeypatch):
    """Rounds at a relaxed level 1/20, so that the rate can be seen: at most 0.05 in 400 runs, with 4.5 sigma of room."""
    monkeypatch.setattr(testing, "ROUNDS", 1)
    monkeypatch.setattr(testing, "ALARM", 0.05)
    alarms = sum(outcome(lambda g: normal(g, 1024), seed).outcome == "BIASED" for seed in range(400))
    assert alarms <= 400 * 0.05 + 4.5 * math.sqrt(400 * 0.05 * 0.95)


def test_not_finite():
    def broken(generator):
        rows = normal(generator)
        rows[17, 2] = math.nan
        return rows

    assert outcome(broken).outcome == "NONFINITE"


def test_a_value_that_is_not_given_is_not_tested():
    def without(generator):
        rows = normal(generator)
        rows[:, 0] = math.nan
        return rows

    assert outcome(without).outcome == "PASS"


def test_heavy_tails_are_refused_and_normal_ones_never():
    def cauchy(generator):
        uniform = torch.rand(4096, 5, generator=generator, dtype=torch.float64)
        return MEAN + torch.tan(math.pi * (uniform - 0.5))

    assert [outcome(cauchy, seed).outcome for seed in range(20)] == ["HEAVY_TAIL"] * 20


def test_one_large_draw_is_looked_at_again():
    """A draw that carries most of the squares of 1,000 refuses nothing if none of the next 4,000 does; five do."""
    everything = torch.ones(5, dtype=torch.bool)
    rows = torch.randn(1_000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + MEAN
    spoilt = rows.clone()
    spoilt[17, 3] += 1_000
    assert heavy_tail(rows, iter([]), MEAN, everything) is None  # and takes no more draws
    assert heavy_tail(spoilt, itertools.repeat(rows), MEAN, everything) is None
    reason, draws = heavy_tail(spoilt, itertools.repeat(spoilt), MEAN, everything)
    assert "the gradient's sum of squares" in reason and draws == 5_000
    only_value = torch.arange(5) == 0
    assert heavy_tail(spoilt, iter([]), MEAN, only_value) is None


def test_dependent_estimates_are_refused():
    def moving_average(generator):
        noise = torch.randn(4097, 5, generator=generator, dtype=torch.float64)
        return MEAN + noise[1:] + 0.5 * noise[:-1]

    assert outcome(moving_average).outcome == "NOT_IID"


def test_a_small_bias_is_found_along_a_direction_less_noisy_than_others():
    """0.02 of a gradient of length 1.16, a third of the effect, while theta asks for so many draws that it stands out."""

    def quiet(generator, bias=0.02):
        noise = torch.randn(4096, 5, generator=generator, dtype=torch.float64)
        return (
            MEAN + noise * torch.tensor([1, 4, 1.2, 1.2, 1.2]).double() + bias * torch.tensor([0, 0, 0, 1, 0]).double()
        )

    assert outcome(quiet).outcome == "BIASED"
    assert outcome(lambda generator: quiet(generator, 0.0)).outcome == "PASS"


def test_what_is_skewed_and_hardly_noisy_is_clear_of_a_bias_when_the_draws_are_used_up():
    """One draw in ten thousand differs: for an effect that skewness allows, eight times as many draws would be needed."""

    def rare(generator, bias=0.0, size=0.05):
        rows, seldom = normal(generator), torch.rand(4096, generator=generator, dtype=torch.float64) < 1e-4
        rows[:, 1] = MEAN[1] + bias + size * 100 * (seldom.double() - 1e-4)
        return rows

    finding = outcome(rare, max_draws=400_000)
    assert finding.outcome == "PASS" and finding.effect == pytest.approx(testing.EFFECT) and finding.draws >= 400_000
    # 0.05 of theta's gradient is 0.035: neither a bias of it, nor noise beside which it could not be told, is passed.
    assert outcome(lambda generator: rare(generator, 0.035), max_draws=400_000).outcome == "BIASED"
    assert outcome(lambda generator: rare(generator, size=6.0), max_draws=400_000).outcome != "PASS"


def test_draws_that_come_again_are_refused():
    """Twice in a batch, or batch after batch: what a generator gives that is seeded where it is used."""

    def twice(generator):
        rows = normal(generator)
        return torch.cat([rows[:2048], rows[:2048]])

    def seeded(generator):
        return normal(torch.Generator().manual_seed(3))

    for repeats, apart in ((twice, 2048), (seeded, 4096)):
        finding = outcome(repeats)
        assert finding.outcome == "NOT_IID" and f"{apart} apart" in finding.reason


def test_independent_draws_of_any_law_are_not_refused_for_dependence():
    """Nothing to see in laws with atoms, skewness or heavy tails; a false alarm has a probability below 1e-6 a law."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(80_000, 2, generator=generator, dtype=torch.float64)
    laws = (
        uniform,
        (uniform < 0.001).double(),
        (uniform < 0.3).double(),
        uniform**-0.45,
        torch.tan(3.14 * (uniform - 0.5)),
    )
    assert [dependence(rows - rows.mean(0)) for rows in laws] == [None] * len(laws)


def test_a_few_rare_draws_may_be_neighbours():
    """One draw in 83 is 1, of 20,000; the pairs of neighbours among them are Poisson with mean 2.9.

    More than 14 come with a probability of 2e-7, more than 40 with one of 1e-29.
    """

    def with_pairs(pairs):
        rows = torch.zeros(20_000, dtype=torch.float64)
        for place in torch.randperm(19_990, generator=torch.Generator().manual_seed(0)).tolist():
            if rows.sum() < 240 and not rows[max(place - 1, 0) : place + 3].any():
                rows[place : place + (2 if pairs else 1)] = 1.0
                pairs -= pairs > 0
        return rows[:, None]

    assert [dependence(rows - rows.mean(0)) for rows in (with_pairs(12), with_pairs(14))] == [None, None]
    rows = with_pairs(40)
    assert "neighbouring" in str(dependence(rows - rows.mean(0)))


def test_a_budget_that_is_too_small_is_inconclusive():
    def noisy(generator):
        return MEAN + 300 * torch.randn(4096, 5, generator=generator, dtype=torch.float64)

    assert outcome(noisy, max_draws=20_000).outcome == "INCONCLUSIVE"


def test_nothing_known_is_inconclusive():
    assert outcome(normal, truth={}).outcome == "INCONCLUSIVE"


def test_columns_without_noise_are_compared_outright():
    def still(generator):
        rows = normal(generator)
        rows[:, 3] = -0.5
        return rows

    assert outcome(still).outcome == "PASS"

    def wrong(generator):
        rows = still(generator)
        rows[:, 3] = -0.5001
        return rows

    found = outcome(wrong)
    assert found.outcome == "BIASED"
    assert found.direction == "phi.b[1]"
    assert found.bias == pytest.approx(-1e-4, rel=1e-6)


def test_everything_without_noise():
    assert outcome(lambda generator: MEAN.repeat(4096, 1)).outcome == "PASS"


def test_the_direction_of_a_bias_is_named():
    shift = torch.tensor([0, 0, 0.4, 0, 0], dtype=torch.float64)
    found = outcome(lambda g: normal(g) + shift)
    assert found.outcome == "BIASED"
    assert found.direction in ("phi.b[0]", "phi: along its gradient", "along the whole gradient")
    assert found.bias == pytest.approx(0.4, abs=6 * found.standard_error + 0.1)


def test_assert_unbiased_is_for_anyones_tests():
    problem = Gaussian1D(loc=1.5, scale=0.6, x=1.3, prior_loc=0.2)
    # d ELBO / d loc = (prior_loc + x - 2 loc), d / d log_scale = 1 - 2 scale^2, d / d prior_loc = loc - prior_loc
    truth = {
        "theta": {"prior_loc": torch.tensor([1.3], dtype=torch.float64)},
        "phi": {
            "loc": torch.tensor([0.2 + 1.3 - 3.0], dtype=torch.float64),
            "log_scale": torch.tensor([1 - 2 * 0.36], dtype=torch.float64),
        },
    }
    found = assert_unbiased(estimators.get("sticking-the-landing"), problem, problem.parameters, truth)
    assert found.outcome == "PASS"
    with pytest.raises(AssertionError, match="iwae: BIASED"):
        assert_unbiased(estimators.get("iwae", num_samples=4), problem, problem.parameters, truth)


def test_equal_seeds_give_equal_findings():
    problem = Gaussian1D()
    estimator = estimators.get("reparameterization")
    truth = {"theta": {"prior_loc": torch.tensor([1.2], dtype=torch.float64)}}
    first, second = (check_unbiased(estimator, problem, problem.parameters, truth, seed=3) for _ in range(2))
    other = check_unbiased(estimator, problem, problem.parameters, truth, seed=4)
    assert first == second
    assert first != other


def test_gauss_hermite_integrates_polynomials_exactly():
    x, w = gauss_hermite(12)
    for power, moment in ((0, 1), (2, 1), (4, 3), (6, 15), (8, 105), (22, math.prod(range(1, 22, 2)))):
        assert float((w * x**power).sum()) == pytest.approx(moment, rel=1e-10)


def test_exact_expectation_refuses_what_it_cannot_integrate():
    problem = Gaussian1D()
    with pytest.raises(ValueError, match="too large for quadrature"):
        exact_expectation(estimators.get("iwae", num_samples=4), problem, problem.parameters)
