"""One scalar latent that is not Gaussian, with data to which its prior is conjugate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from estimators import Beta, Block, Gamma, Parameters, Target

from ..references.on_a_line import Grid, Mesh, between
from ..references.stirling import beta_kl, gamma_kl, mean_log, poisson
from .scalar_latent import ScalarLatent

Pair = tuple[Tensor, Tensor]
"""Two parameters of a law of one number, each ``(points,)``."""
ROUNDED = 1e-9
"""Nats that rounding of log densities may move sums over a grid by."""
LARGEST = 1e15
"""Of a conjugate prior's parameters and its mean: beyond, rounding of these alone moves values by 1e-8."""


@dataclass(frozen=True)
class Conjugate(ScalarLatent):
    """Abstract: data drawn from the model with the given prior, and a guide near the posterior.

    Arguments:
        observations: of each data point. points: data points. seed: of the data and the perturbation.
        perturbation: of both of the guide's parameters, in logarithms, from those of the posterior.
    """

    observations: int = 3
    points: int = 1
    seed: int = 0
    perturbation: float = 0.3

    def validate(self) -> None:
        for field in ("observations", "points"):
            self.require(getattr(self, field) >= 1, f"{field} must be at least 1, not {getattr(self, field)}")
        self.require(self.seed >= 0, f"seed must not be negative, not {self.seed}")

    def require_positive(self, *fields: str) -> None:
        """Refuse parameters of the prior that are not positive, or larger than exact values can be had for."""
        for field in fields:
            value = getattr(self, field)
            self.require(value > 0, f"{field} must be positive, not {value}")
            self.require(value <= LARGEST, f"{field} must be at most {LARGEST:g}, not {value}")

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """x ``(points, observations)``."""
        raise NotImplementedError

    def natural(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The posterior's two parameters, each ``(points,)``."""
        raise NotImplementedError

    def summed(self, target: Target) -> tuple[float, Parameters] | None:
        """As of all scalar latents, where log Gamma of what the laws are made of is known to enough digits."""
        shapes = [leaf for leaves in self.parameters.values() for name, leaf in leaves.items() if "rate" not in name]
        largest = max(float(torch.lgamma(leaf.exp()).max()) for leaf in shapes)
        return None if largest * torch.finfo(torch.float64).eps > ROUNDED else super().summed(target)

    @cached_property
    def _setting(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        x = self.draw(rng)
        logs = np.log(np.stack(self.natural(x)))[..., None]
        return {"x": x, "logs": logs + self.perturbation * rng.standard_normal(logs.shape)}

    @cached_property
    def data(self) -> Tensor:
        return self.tensor(self._setting["x"])


@dataclass(frozen=True)
class GammaPoisson(Conjugate):
    """z ~ Gamma(a, b), x_i | z ~ Poisson(z), and a gamma guide; the posterior is Gamma(a + sum x, b + n).

    Arguments:
        observations: n of each data point. points: data points. seed: of the data and the perturbation.
        perturbation: of the guide's parameters, in logarithms, from the posterior's.
        concentration, rate: a and b.

    theta: ``log_prior_concentration`` () and ``log_prior_rate`` (); phi: ``log_concentration`` and ``log_rate``, (points, 1).

    References:
        Figurnov, Mohamed & Mnih (2018) for the derivative of its draws.
    """

    concentration: float = 2.0
    rate: float = 0.8

    name = "gamma-poisson"
    version = "4"
    summary = "a gamma latent with Poisson counts and implicit reparameterisation: closed forms, L_K for every K"
    citations = ("figurnov2018",)

    def validate(self) -> None:
        super().validate()
        self.require_positive("concentration", "rate")
        mean = self.concentration / self.rate
        self.require(mean <= LARGEST, f"concentration / rate must be at most {LARGEST:g}, not {mean}")

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        z = rng.gamma(self.concentration, 1 / self.rate, (self.points, 1))
        return rng.poisson(z, (self.points, self.observations)).astype(float)

    def natural(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.concentration + x.sum(1), np.full(len(x), self.rate + self.observations)

    @cached_property
    def parameters(self) -> Parameters:
        log_concentration, log_rate = self._setting["logs"]
        return {
            "theta": {
                "log_prior_concentration": self.tensor(math.log(self.concentration)),
                "log_prior_rate": self.tensor(math.log(self.rate)),
            },
            "phi": {"log_concentration": self.tensor(log_concentration), "log_rate": self.tensor(log_rate)},
        }

    def guide(self, phi: Block) -> Gamma:
        return Gamma(phi["log_concentration"], phi["log_rate"])

    def prior(self, theta: Block) -> Gamma:
        like = self.data[:, :1]
        return Gamma(theta["log_prior_concentration"].expand_as(like), theta["log_prior_rate"].expand_as(like))

    def log_likelihood(self, theta: Block, z: Tensor) -> Tensor:
        return (self.data * z.log() - z - torch.lgamma(self.data + 1)).sum(-1)

    def log_joint(self, theta: Block, z: Tensor) -> Tensor:
        return self.prior(theta).log_prob(z) + self.log_likelihood(theta, z)

    @property
    def mesh(self) -> Mesh:
        phi = self.parameters["phi"]
        a, b = phi["log_concentration"].exp()[:, 0], phi["log_rate"].exp()[:, 0]
        low, high = between(lambda y: a * y - b * y.exp(), a.log() - b.log())  # the guide's density of y = log z

        def grid(nodes: int) -> Grid:
            step = (high - low) / (nodes - 1)
            z = (low + step * torch.arange(nodes, dtype=torch.float64)[:, None]).exp()
            return z[..., None], z * step

        return grid

    def closed_forms(self) -> dict[str, Callable[[Parameters], Tensor]]:
        x, n = self.data, self.observations

        def unpacked(p: Parameters) -> tuple[Pair, Pair]:
            theta, phi = p["theta"], p["phi"]
            like = phi["log_rate"][:, 0]
            prior = [theta[f"log_prior_{name}"].exp().expand_as(like) for name in ("concentration", "rate")]
            return (prior[0], prior[1]), (phi["log_concentration"][:, 0].exp(), like.exp())

        def posterior(prior: Pair) -> Pair:
            return prior[0] + x.sum(1), prior[1] + n

        def elbo(prior: Pair, guide: Pair) -> Tensor:
            c, r = guide
            log_likelihood = poisson(x, (c / r)[:, None]).sum(1) + x.sum(1) * mean_log(c)
            return (log_likelihood - gamma_kl(c, r, *prior)).mean()

        def log_marginal(p: Parameters) -> Tensor:
            # The ELBO of the posterior, held: along q its slope is zero there.
            prior = unpacked(p)[0]
            c, r = posterior(prior)
            return elbo(prior, (c.detach(), r.detach()))

        def forward_kl(p: Parameters) -> Tensor:
            prior, guide = unpacked(p)
            c, r = posterior(prior)
            return -gamma_kl(c.detach(), r.detach(), *guide).mean()

        return {"elbo": lambda p: elbo(*unpacked(p)), "log_marginal": log_marginal, "forward_kl": forward_kl}


@dataclass(frozen=True)
class BetaBernoulli(Conjugate):
    """z ~ Beta(a, b), x_i | z ~ Bernoulli(z), and a beta guide; the posterior is Beta(a + sum x, b + n - sum x).

    Arguments:
        observations: n of each data point. points: data points. seed: of the data and the perturbation.
        perturbation: of the guide's parameters, in logarithms, from the posterior's.
        alpha, beta: a and b.

    theta: ``log_prior_alpha`` () and ``log_prior_beta`` (); phi: ``log_alpha`` and ``log_beta``, (points, 1).

    Warning:
        Numbers near 1 are no closer to it than rounding. Where exp(-34 b) of the guide's mass, which is what lies closer to 1
        than that, is not negligible (b below 0.6), bounds of two samples are not known.

    References:
        Figurnov, Mohamed & Mnih (2018) for the derivative of its draws.
    """

    observations: int = 6
    alpha: float = 1.5
    beta: float = 2.0

    name = "beta-bernoulli"
    version = "4"
    summary = "a beta latent with binary data and implicit reparameterisation: closed forms, L_K for every K"
    citations = ("figurnov2018",)

    def validate(self) -> None:
        super().validate()
        self.require_positive("alpha", "beta")

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        z = rng.beta(self.alpha, self.beta, (self.points, 1))
        return (rng.random((self.points, self.observations)) < z).astype(float)

    def natural(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.alpha + x.sum(1), self.beta + (1 - x).sum(1)

    @cached_property
    def parameters(self) -> Parameters:
        log_alpha, log_beta = self._setting["logs"]
        return {
            "theta": {
                "log_prior_alpha": self.tensor(math.log(self.alpha)),
                "log_prior_beta": self.tensor(math.log(self.beta)),
            },
            "phi": {"log_alpha": self.tensor(log_alpha), "log_beta": self.tensor(log_beta)},
        }

    def guide(self, phi: Block) -> Beta:
        return Beta(phi["log_alpha"], phi["log_beta"])

    def prior(self, theta: Block) -> Beta:
        like = self.data[:, :1]
        return Beta(theta["log_prior_alpha"].expand_as(like), theta["log_prior_beta"].expand_as(like))

    def log_likelihood(self, theta: Block, z: Tensor) -> Tensor:
        return (self.data * z.log() + (1 - self.data) * torch.log1p(-z)).sum(-1)

    def log_joint(self, theta: Block, z: Tensor) -> Tensor:
        return self.prior(theta).log_prob(z) + self.log_likelihood(theta, z)

    @property
    def mesh(self) -> Mesh:
        phi = self.parameters["phi"]
        a, b = phi["log_alpha"].exp()[:, 0], phi["log_beta"].exp()[:, 0]
        # The guide's density of y = logit z, as far as z and 1 - z can still be told from 0.
        low, high = between(lambda y: a * logsigmoid(y) + b * logsigmoid(-y), a.log() - b.log())
        low, high = low.clamp_min(-300.0), high.clamp_max(34.0)

        def grid(nodes: int) -> Grid:
            step = (high - low) / (nodes - 1)
            z = (low + step * torch.arange(nodes, dtype=torch.float64)[:, None]).sigmoid()
            return z[..., None], z * (1 - z) * step

        return grid

    def closed_forms(self) -> dict[str, Callable[[Parameters], Tensor]]:
        ones, zeros = self.data.sum(1), (1 - self.data).sum(1)

        def unpacked(p: Parameters) -> tuple[Pair, Pair]:
            theta, phi = p["theta"], p["phi"]
            like = phi["log_beta"][:, 0]
            prior = [theta[f"log_prior_{name}"].exp().expand_as(like) for name in ("alpha", "beta")]
            return (prior[0], prior[1]), (phi["log_alpha"][:, 0].exp(), like.exp())

        def elbo(prior: Pair, guide: Pair) -> Tensor:
            c, d = guide
            log_z, log_rest = mean_log(c) - (d / c).log1p(), mean_log(d) - (c / d).log1p()
            log_likelihood = ones * log_z + zeros * log_rest - (ones + zeros) * mean_log(c + d)
            return (log_likelihood - beta_kl(c, d, *prior)).mean()

        def rising(a: Tensor, count: Tensor) -> Tensor:
            """log of a (a + 1) ... (a + count - 1)."""
            steps = torch.arange(self.observations).to(a)
            return torch.where(steps < count[:, None], (a[:, None] + steps).log(), 0.0).sum(1)

        def log_marginal(p: Parameters) -> Tensor:
            a, b = unpacked(p)[0]
            return (rising(a, ones) + rising(b, zeros) - rising(a + b, ones + zeros)).mean()

        def forward_kl(p: Parameters) -> Tensor:
            (a, b), guide = unpacked(p)
            return -beta_kl((a + ones).detach(), (b + zeros).detach(), *guide).mean()

        return {"elbo": lambda p: elbo(*unpacked(p)), "log_marginal": log_marginal, "forward_kl": forward_kl}
