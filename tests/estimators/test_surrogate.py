"""What the surrogate takes for weights, and what it tells of those that it does not take: alone, and beside other rules."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

import estimators
from benchmarks.problems import Gaussian1D
from estimators import replicates, sweep

PROBLEM = Gaussian1D(loc=1.6, scale=0.6, x=1.5, prior_loc=0.5)
K = 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.complex128, torch.int64])
def test_weights_of_another_type_are_refused(dtype):
    """Cast in silence they would lose digits, or their imaginary part."""

    class Cast(estimators.StickingTheLanding):
        def weights(self, log_w):
            return estimators.Weights(torch.ones_like(log_w).to(dtype), None, 1.0)

    noise = torch.randn(K, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with pytest.raises(TypeError, match="weights must have the type of log_w"):
        Cast(num_samples=K).gradient(PROBLEM, PROBLEM.parameters, noise)


def _told(weights):
    """What a rule that gives such weights is told, alone and beside others, with K samples of one data point."""

    class Mine(estimators.StickingTheLanding):
        def weights(self, log_w):
            return weights(log_w)

    noise = torch.randn(2, K, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    said = set()
    for rows in (replicates.vectorised, shared):
        with pytest.raises((TypeError, ValueError, RuntimeError)) as told:
            rows(Mine(num_samples=K), PROBLEM, PROBLEM.parameters)(noise)
        said.add(f"{told.type.__name__}: {told.value}")
    return said


def shared(estimator, problem, parameters):
    return lambda noise: sweep.Shared(problem, parameters, noise).rows(estimator)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (lambda log_w: (1.0, None), "TypeError: a rule gives Weights(path, score, model), not a tuple of 2"),
        (lambda log_w: None, "TypeError: a rule gives Weights(path, score, model), not a NoneType"),
        (lambda log_w: ([1.0], None, 1.0), "TypeError: weights: path must be a tensor, a number or None, not a list"),
        (lambda log_w: (1.0, 1j, 1.0), "TypeError: weights: score must be a tensor, a number or None, not a complex"),
        (lambda log_w: (1.0, None, log_w[:, 0]), f"ValueError: weights: model has shape ({K},); it must be ({K}, 1), "),
        (lambda log_w: (log_w[:1], None, 1.0), f"ValueError: weights: path has shape (1, 1); it must be ({K}, 1), "),
        (lambda log_w: (log_w[None], None, 1.0), f"ValueError: weights: path has shape (1, {K}, 1); it must be ({K}, 1), "),
        (lambda log_w: (torch.rand(K, 1), None, 1.0), "RuntimeError: a rule draws no numbers of its own: "),
        (lambda log_w: (log_w.max().item(), None, 1.0), "RuntimeError: replicates are computed together, "),
        (lambda log_w: (1.0 if log_w.sum() > 0 else 0.5, None, 1.0), "RuntimeError: replicates are computed together, "),
    ],
)  # fmt: skip
def test_weights_of_a_rule_that_went_wrong(weights, said):
    """Broadcast in silence, ``(K,)`` beside ``(K, points)`` would weigh data points by samples."""
    assert [each.startswith(said) for each in _told(weights)] in ([True], [True, True])


def test_a_weight_may_be_one_number_in_any_guise():
    noise = torch.randn(K, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def estimate(weight):
        class Mine(estimators.StickingTheLanding):
            def weights(self, log_w):
                return estimators.Weights(weight(log_w), None, weight(log_w))

        return Mine(num_samples=K).gradient(PROBLEM, PROBLEM.parameters, noise)

    plain = estimate(lambda log_w: 0.5)
    for weight in (lambda w: w.new_tensor(0.5), lambda w: w.new_full(w.shape, 0.5), lambda w: Fraction(1, 2)):
        for block in ("theta", "phi"):
            for name, leaf in getattr(estimate(weight), block).items():
                torch.testing.assert_close(leaf, getattr(plain, block)[name], rtol=1e-14, atol=0)
