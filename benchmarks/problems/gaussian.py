"""Gaussian problems whose posterior, bounds and gradients are known in closed form or by exact integrals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from estimators import Block, DiagonalGaussian, Parameters, Target, standard_log_prob

from .. import references
from ..references.quadratic_form import iwae_gradient
from ..references.quadratic_moments import moments
from .known_bounds import SMALL, SUMS, small_bound, sum_of_bounds
from .problem import Problem, Reference

CLOSED_FORM = {
    "reparameterization": "reparameterization",
    "sticking-the-landing": "sticking_the_landing",
    "reparameterization-analytic-kl": "analytic_kl",
    "score-function": "score_function",
    "leave-one-out": "leave_one_out",
    "bonnet-price": "bonnet_price",
}
"""Estimators whose exact variance has a closed form, and what the references call them."""
INTEGRAL = {
    "iwae": "iwae",
    "iwae-stl": "stl",
    "dreg": "dreg",
    "reweighted-wake-sleep": "rws",
    "reweighted-wake-sleep-dreg": "rws_dreg",
}
"""Estimators whose exact variance is an integral for any K, and what the references call them."""
LEAST_NOISE = 1e-8
"""Of the data: below, x is known to fewer digits than exact values are claimed to."""
ALL = frozenset({"reparameterizable", "gaussian", "twice_differentiable", "analytic_kl", "invertible_prior", "data"})


def require_noise(problem: Problem) -> None:
    """Refuse a problem whose ``noise_scale`` is not positive, or lost among the digits of x."""
    scale = problem.noise_scale  # type: ignore[attr-defined]
    problem.require(scale >= LEAST_NOISE, f"noise_scale must be at least {LEAST_NOISE}, not {scale}")


@dataclass(frozen=True)
class UnitGaussian(Problem):
    """Abstract: z ~ N(prior_loc, I) and x | z ~ N(z, I); theta is ``prior_loc``."""

    def prior(self, theta: Block) -> DiagonalGaussian:
        loc = theta["prior_loc"].expand_as(self.data)
        return DiagonalGaussian(loc, loc.new_zeros(()).expand_as(loc))

    def log_likelihood(self, theta: Block, z: Tensor) -> Tensor:
        return standard_log_prob(z, self.data)  # symmetric; the larger one first

    def log_joint(self, theta: Block, z: Tensor) -> Tensor:
        return standard_log_prob(z, theta["prior_loc"]) + self.log_likelihood(theta, z)


@dataclass(frozen=True)
class Gaussian1D(UnitGaussian):
    """z ~ N(prior_loc, 1), x | z ~ N(z, 1), q = N(loc, scale^2); the posterior is N((prior_loc + x)/2, 1/2).

    Arguments:
        loc, scale: the guide's mean and standard deviation; phi is ``loc`` and ``log_scale``.
        x: the one data point.
        prior_loc: the prior's mean; theta.

    Every target is known exactly: ``elbo`` and ``log_marginal`` in closed form, ``iwae`` for any K by one-dimensional
    integrals and so ``ciwae`` and ``jackknife``, ``forward_kl`` in closed form; other bounds up to K = 4 by quadrature.
    """

    loc: float = 1.2
    scale: float = 0.8
    x: float = 1.0
    prior_loc: float = 0.0

    name = "gaussian-1d"
    version = "2"
    summary = "one Gaussian latent, one observation: every target exact for every K"
    offers = ALL
    exact_targets = ("elbo", "iwae", "log_marginal", "forward_kl", *SUMS, *SMALL)

    def validate(self) -> None:
        self.require(self.scale > 0, f"scale must be positive, not {self.scale}")

    @cached_property
    def parameters(self) -> Parameters:
        return {
            "theta": {"prior_loc": self.tensor([self.prior_loc])},
            "phi": {"loc": self.tensor([self.loc]), "log_scale": self.tensor([math.log(self.scale)])},
        }

    @cached_property
    def data(self) -> Tensor:
        return self.tensor([[self.x]])

    @property
    def tail_ratio(self) -> float:
        return 2 * self.scale**2

    @cached_property
    def _closed_form(self) -> references.LinearGaussian:
        one, zero = np.ones((1, 1)), np.zeros(1)
        prior_loc, x = np.array([self.prior_loc]), np.array([[self.x]])
        loc, log_scale = np.array([[self.loc]]), np.array([[math.log(self.scale)]])
        return references.LinearGaussian(one, zero, 0.0, prior_loc, x, loc, log_scale)

    @cached_property
    def _integrals(self) -> references.GaussianIWAE:
        return references.GaussianIWAE.unit_model(self.x, self.prior_loc, self.loc, math.log(self.scale))

    def exact(self, target: Target) -> Reference | None:
        if target.name in SUMS:
            return sum_of_bounds(self, target)
        if target.name in SMALL:
            return small_bound(self, target)
        if target.name not in self.exact_targets:
            return None
        if target.name == "iwae":
            assert target.num_samples is not None
            found = self._integrals.gradient(target.num_samples)
            method = "one-dimensional integrals over the law of the summed weights"
        else:
            found, method = self._closed_form.gradient(target.name), "closed form"
        return self.reference(target, found, method)

    def exact_variance(self, estimator: str, num_samples: int, block: str) -> float | None:
        names = {"phi": ("loc", "log_scale"), "theta": ("prior_loc",)}.get(block)
        if names is None:
            return None
        if estimator in INTEGRAL:
            moments = self._integrals.moments(INTEGRAL[estimator], num_samples)
            return sum(float(moments[name].variance) for name in names) if names[0] in moments else None
        return known_variance(self._closed_form, estimator, num_samples, block, names)

    def guide(self, phi: Block) -> DiagonalGaussian:
        return DiagonalGaussian(phi["loc"].expand_as(self.data), phi["log_scale"].expand_as(self.data))


@dataclass(frozen=True)
class LinearGaussian(Problem):
    """p(z) = N(0, I), p(x|z) = N(A z + b, s^2 I), q diagonal: the linear VAE with one free Gaussian per data point.

    A has standard normal entries divided by sqrt(dim), b standard normal entries; x is drawn from the model. q stands at
    the best diagonal Gaussian moved by ``perturbation`` standard normals in every coordinate of phi.

    Arguments:
        dim: latent dimensions D. data_dim: data dimensions n. seed: of A, b, x and the perturbation.
        points: data points. noise_scale: s. perturbation: distance from the mean-field optimum.

    theta: ``weight`` (n, D), ``bias`` (n,), ``log_noise_scale`` (); phi: ``loc`` and ``log_scale``, (points, D).
    """

    dim: int = 3
    data_dim: int = 4
    seed: int = 0
    points: int = 1
    noise_scale: float = 1.0
    perturbation: float = 0.3

    name = "linear-gaussian"
    version = "2"
    summary = "linear VAE with a diagonal guide: closed forms, and L_K exact for every K"
    offers = ALL
    exact_targets = ("elbo", "log_marginal", "forward_kl", "iwae", *SUMS, *SMALL)

    def validate(self) -> None:
        for field in ("dim", "data_dim", "points"):
            self.require(getattr(self, field) >= 1, f"{field} must be at least 1, not {getattr(self, field)}")
        self.require(self.seed >= 0, f"seed must not be negative, not {self.seed}")
        require_noise(self)

    @cached_property
    def _setting(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        weight = rng.standard_normal((self.data_dim, self.dim)) / math.sqrt(self.dim)
        bias = rng.standard_normal(self.data_dim)
        z = rng.standard_normal((self.points, self.dim))
        x = z @ weight.T + bias + self.noise_scale * rng.standard_normal((self.points, self.data_dim))
        precision = np.eye(self.dim) + weight.T @ weight / self.noise_scale**2
        mean = np.linalg.solve(precision, weight.T @ (x - bias).T / self.noise_scale**2).T
        log_scale = -0.5 * np.log(np.diag(precision)).repeat(self.points).reshape(self.dim, self.points).T
        shift = self.perturbation * rng.standard_normal((2, self.points, self.dim))
        return {"weight": weight, "bias": bias, "x": x, "loc": mean + shift[0], "log_scale": log_scale + shift[1]}

    @cached_property
    def parameters(self) -> Parameters:
        s = self._setting
        return {
            "theta": {
                "weight": self.tensor(s["weight"]),
                "bias": self.tensor(s["bias"]),
                "log_noise_scale": self.tensor(math.log(self.noise_scale)),
            },
            "phi": {"loc": self.tensor(s["loc"]), "log_scale": self.tensor(s["log_scale"])},
        }

    @cached_property
    def data(self) -> Tensor:
        return self.tensor(self._setting["x"])

    @cached_property
    def _closed_form(self) -> references.LinearGaussian:
        s = self._setting
        log_noise_scale = math.log(self.noise_scale)
        return references.LinearGaussian(
            s["weight"], s["bias"], log_noise_scale, None, s["x"], s["loc"], s["log_scale"]
        )

    @property
    def tail_ratio(self) -> float:
        return float(self._closed_form.tail_ratio())

    def exact(self, target: Target) -> Reference | None:
        if target.name in SUMS:
            return sum_of_bounds(self, target)
        if target.name in SMALL:
            return small_bound(self, target)
        if target.name == "iwae" and target.num_samples != 1:
            assert target.num_samples is not None
            found = iwae_gradient(self._closed_form, target.num_samples)
            return self.reference(target, found, "Mellin-Barnes integrals over the law of a quadratic form")
        if target.name not in self.exact_targets:
            return None
        name = "elbo" if target.name == "iwae" else target.name
        found = self._closed_form.gradient(name)
        return self.reference(target, found, "closed form")

    def exact_variance(self, estimator: str, num_samples: int, block: str) -> float | None:
        names = {"phi": ("loc", "log_scale"), "theta": ("weight", "bias", "log_noise_scale")}.get(block)
        return None if names is None else known_variance(self._closed_form, estimator, num_samples, block, names)

    def guide(self, phi: Block) -> DiagonalGaussian:
        return DiagonalGaussian(phi["loc"], phi["log_scale"])

    def prior(self, theta: Block) -> DiagonalGaussian:
        zero = self.data.new_zeros(()).expand(self.points, self.dim)
        return DiagonalGaussian(zero, zero)

    def log_likelihood(self, theta: Block, z: Tensor) -> Tensor:
        mean = z @ theta["weight"].mT + theta["bias"]
        return DiagonalGaussian(mean, theta["log_noise_scale"].expand_as(mean)).log_prob(self.data)

    def log_joint(self, theta: Block, z: Tensor) -> Tensor:
        return standard_log_prob(z, z.new_zeros(())) + self.log_likelihood(theta, z)


def known_variance(
    exact: references.LinearGaussian, estimator: str, num_samples: int, block: str, names: tuple[str, ...]
) -> float | None:
    """Variance of one estimate, summed over a block, where it has a closed form or is an integral that settles."""
    if estimator in INTEGRAL:
        try:
            found = moments(exact, INTEGRAL[estimator], num_samples)
        except references.QuadratureError:
            return None
        return float(sum(np.sum(found[name][1]) for name in names))
    if estimator not in CLOSED_FORM:
        return None
    if block == "theta":
        # With the KL in closed form the prior and the entropy no longer contribute noise: another variance altogether.
        if estimator == "reparameterization-analytic-kl":
            return None
        variances = exact.model_variance(num_samples)
    else:
        variances = exact.variance(CLOSED_FORM[estimator], num_samples)
    return float(sum(np.sum(variances[name]) for name in names))
