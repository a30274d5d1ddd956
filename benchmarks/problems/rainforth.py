"""The toy on which signal-to-noise ratios of importance-weighted gradients are published."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from estimators import Block, DiagonalGaussian, Parameters, Target

from .. import references
from .gaussian import ALL, UnitGaussian
from .problem import Reference

INTEGRAL = {"iwae": "iwae", "iwae-stl": "stl", "dreg": "dreg"}


@dataclass(frozen=True)
class Rainforth(UnitGaussian):
    """p(z) = N(theta, I), p(x|z) = N(z, I), q = N(A x + b, (2/3) I): 2/3 is the covariance, and fixed.

    ``points`` data points are drawn with a standard normal true theta; theta stands at their mean, A at I/2 and b at
    theta/2, and every parameter is then moved by ``perturbation`` standard normals.

    theta: ``prior_loc`` (D,); phi: ``weight`` (D, D) and ``bias`` (D,).

    References:
        Rainforth et al. (2018), section 4; Tucker et al. (2019). Covariance as stated by Shi & Cornish (2021), 7.1.
    """

    dim: int = 20
    points: int = 1024
    perturbation: float = 0.01
    seed: int = 0

    name = "rainforth"
    summary = "amortised linear Gaussian of Rainforth et al.: exact bounds, gradients and variances for every K"
    citations = ("rainforth2018", "tucker2019", "shi2021")
    offers = ALL
    exact_targets = ("elbo", "iwae", "log_marginal", "forward_kl")

    def validate(self) -> None:
        for field in ("dim", "points"):
            self.require(getattr(self, field) >= 1, f"{field} must be at least 1, not {getattr(self, field)}")
        self.require(self.seed >= 0, f"seed must not be negative, not {self.seed}")

    @cached_property
    def _setting(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        true_theta = rng.standard_normal(self.dim)
        x = true_theta + math.sqrt(2) * rng.standard_normal((self.points, self.dim))
        theta = x.mean(0)

        def moved(optimum: np.ndarray) -> np.ndarray:
            return optimum + self.perturbation * rng.standard_normal(optimum.shape)

        return {"x": x, "prior_loc": moved(theta), "weight": moved(np.eye(self.dim) / 2), "bias": moved(theta / 2)}

    @cached_property
    def parameters(self) -> Parameters:
        s = self._setting
        return {
            "theta": {"prior_loc": self.tensor(s["prior_loc"])},
            "phi": {"weight": self.tensor(s["weight"]), "bias": self.tensor(s["bias"])},
        }

    @cached_property
    def data(self) -> Tensor:
        return self.tensor(self._setting["x"])

    @property
    def tail_ratio(self) -> float:
        return 4 / 3

    @cached_property
    def _exact(self) -> references.Rainforth:
        s = self._setting
        return references.Rainforth(s["x"], s["prior_loc"], s["weight"], s["bias"])

    def exact(self, target: Target) -> Reference:
        if target.name == "iwae":
            assert target.num_samples is not None
            found = self._exact.bound_gradient(target.num_samples)
            method = "integrals over the law of the summed weights, in the radius alone"
        else:
            found, method = self._exact.gradient(target.name), "closed form"
        return self.reference(target, {**found, "prior_loc": found.get("theta")}, method)

    def exact_variance(self, estimator: str, num_samples: int, block: str) -> float | None:
        if estimator not in INTEGRAL or block not in ("theta", "phi"):
            return None
        return float(self._exact.moments(INTEGRAL[estimator], num_samples)[block].trace)

    def guide(self, phi: Block) -> DiagonalGaussian:
        loc = self.data @ phi["weight"].mT + phi["bias"]
        return DiagonalGaussian(loc, loc.new_full((), 0.5 * math.log(2 / 3)).expand_as(loc))
