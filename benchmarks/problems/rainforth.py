"""The toy on which signal-to-noise ratios of importance-weighted gradients are published."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from estimators import Block, DiagonalGaussian, LatentModel, Parameters, Target, standard_log_prob

from .. import references
from .gaussian import ALL, UnitGaussian
from .known_bounds import SUMS, sum_of_bounds
from .problem import Reference

INTEGRAL = {"iwae": "iwae", "iwae-stl": "stl", "dreg": "dreg"}


@dataclass(frozen=True)
class AmortizedGaussian(DiagonalGaussian):
    """The guide N(A x + b, (2/3) I), which knows that its model's data are Gaussian and of the latents' size."""

    @classmethod
    def of(cls, phi: Block, x: Tensor) -> AmortizedGaussian:
        loc = x @ phi["weight"].mT + phi["bias"]
        return cls(loc, loc.new_full((), 0.5 * math.log(2 / 3)).expand_as(loc))

    def simulation_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.noise(shape, generator), self.noise(shape, generator)


@dataclass(frozen=True)
class Dream(LatentModel):
    """The model with data ``x (..., D)`` that it drew itself."""

    x: Tensor

    def log_joint(self, theta: Block, z: Tensor) -> Tensor:
        return standard_log_prob(z, theta["prior_loc"]) + standard_log_prob(z, self.x)

    def guide(self, phi: Block) -> AmortizedGaussian:
        return AmortizedGaussian.of(phi, self.x)


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
    offers = ALL | {"simulable"}
    exact_targets = ("elbo", "iwae", "log_marginal", "forward_kl", "sleep", *SUMS)

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

    def exact(self, target: Target) -> Reference | None:
        if target.name not in self.exact_targets:
            return None
        if target.name in SUMS:
            return sum_of_bounds(self, target)
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

    def guide(self, phi: Block) -> AmortizedGaussian:
        return AmortizedGaussian.of(phi, self.data)

    def simulate(self, theta: Block, noise: tuple[Tensor, Tensor]) -> tuple[Tensor, Dream]:
        z = theta["prior_loc"] + noise[0]
        return z, Dream(z + noise[1])
