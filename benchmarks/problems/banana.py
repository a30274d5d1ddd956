"""A bent posterior in two dimensions: not Gaussian, and known exactly all the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.func import grad

from estimators import Block, DiagonalGaussian, Parameters, Target, standard_log_prob

from ..references.on_a_line import Grid, finer, of_many, settled
from .gaussian import ALL
from .known_bounds import SMALL, SUMS, in_blocks, small_bound, sum_of_bounds
from .problem import Problem, Reference

MOST_NODES = 2**20
"""Of the trapezoid rule over z1: it converges exponentially for such integrands."""
ACROSS = finer(512, first=64)
"""Nodes each way of a rule over the plane."""
WITHIN = 8.5
"""The guide's standard deviations that it reaches."""
REACH = 12.0
"""Beyond the prior's mean and the far sides of the parabola: between these lies the posterior, its scale at most 1."""


@dataclass(frozen=True)
class Banana(Problem):
    """z ~ N(prior_loc, I) in the plane, x | z ~ N(z2 + curvature (z1^2 - 1), s^2), and a diagonal Gaussian guide.

    The posterior lies along the parabola z2 = x - curvature (z1^2 - 1). Given z1, all else is Gaussian, so that log p(x)
    and the posterior's moments are integrals over z1 alone, taken by the trapezoid rule. The ELBO is a polynomial's mean and
    in closed form, L_K one integral over the Laplace transform of the weights, itself one over the plane; other bounds, up to
    K = 2, are by quadrature over all noise.

    Arguments:
        curvature: of the parabola; 0 makes the posterior Gaussian. noise_scale: s, the width of the ridge. x: the data.
        loc1, loc2, scale1, scale2: the guide's means and standard deviations.

    theta: ``prior_loc`` (2,), ``curvature`` () and ``log_noise_scale`` (); phi: ``loc`` and ``log_scale``, (2,).

    Warning:
        Where scale2^2 < 1/2 the weights have no variance: along the ridge q falls off faster than the square of p does.

    References:
        Haario, Saksman & Tamminen (1999) for the twisted Gaussian.
    """

    curvature: float = 0.7
    noise_scale: float = 0.8
    x: float = 0.6
    loc1: float = 0.4
    loc2: float = 0.3
    scale1: float = 0.8
    scale2: float = 0.9

    name = "banana"
    version = "4"
    summary = "a bent posterior in two dimensions: not Gaussian, every target by one- or two-dimensional quadrature"
    citations = ("haario1999",)
    offers = ALL
    exact_targets = ("elbo", "log_marginal", "forward_kl", "iwae", *SUMS, *SMALL)

    def validate(self) -> None:
        for field in ("noise_scale", "scale1", "scale2"):
            self.require(getattr(self, field) > 0, f"{field} must be positive, not {getattr(self, field)}")

    @cached_property
    def parameters(self) -> Parameters:
        return {
            "theta": {
                "prior_loc": self.tensor([0.3, -0.2]),
                "curvature": self.tensor(self.curvature),
                "log_noise_scale": self.tensor(math.log(self.noise_scale)),
            },
            "phi": {
                "loc": self.tensor([self.loc1, self.loc2]),
                "log_scale": self.tensor([math.log(self.scale1), math.log(self.scale2)]),
            },
        }

    @cached_property
    def data(self) -> Tensor:
        return self.tensor([[self.x]])

    def guide(self, phi: Block) -> DiagonalGaussian:
        return DiagonalGaussian(phi["loc"][None], phi["log_scale"][None])

    def prior(self, theta: Block) -> DiagonalGaussian:
        loc = theta["prior_loc"][None]
        return DiagonalGaussian(loc, loc.new_zeros(()).expand_as(loc))

    def log_likelihood(self, theta: Block, z: Tensor) -> Tensor:
        mean = z[..., 1:] + theta["curvature"] * (z[..., :1].square() - 1)
        return DiagonalGaussian(mean, theta["log_noise_scale"].expand_as(mean)).log_prob(self.data)

    def log_joint(self, theta: Block, z: Tensor) -> Tensor:
        return standard_log_prob(z, theta["prior_loc"]) + self.log_likelihood(theta, z)

    def plane(self, nodes: int) -> Grid:
        """A grid over all that matters of the guide's law, of so many nodes each way."""
        loc, scale = self.parameters["phi"]["loc"], self.parameters["phi"]["log_scale"].exp()
        line = torch.linspace(-WITHIN, WITHIN, nodes, dtype=loc.dtype)
        z = loc + scale * torch.cartesian_prod(line, line)[:, None]
        return z, (scale.prod() * (line[1] - line[0]).square()).expand(z.shape[:-1])

    def exact(self, target: Target) -> Reference | None:
        if target.name in SMALL:
            return small_bound(self, target)
        if target.name in SUMS:
            return sum_of_bounds(self, target)
        if target.name not in self.exact_targets:
            return None
        double = replace(self, dtype="float64")
        if target.name == "iwae" and (target.num_samples or 1) > 1:
            K = target.num_samples or 1
            found = settled(lambda nodes: of_many(double, double.parameters, K, double.plane(nodes)), ACROSS)
            if found is None:  # of ridges that are too sharp for a grid over the plane
                return small_bound(self, target)
            return in_blocks(self, target, found, "trapezoid rules over z and over t of E exp(-t w)")

        def differentiated(value: Callable[[Block, Block, Tensor], Tensor]) -> tuple[float, Parameters]:
            def of(p: Parameters) -> Tensor:
                return value(p["theta"], p["phi"], double.data[0, 0])

            return float(of(double.parameters)), grad(of)(double.parameters)

        if target.name in ("elbo", "iwae"):
            return in_blocks(self, target, differentiated(_elbo), "closed form")
        over_z1 = {"log_marginal": _log_marginal, "forward_kl": _forward_kl}[target.name]
        found = settled(lambda nodes: differentiated(partial(over_z1, nodes)), finer(MOST_NODES))
        return found and in_blocks(self, target, found, "trapezoid rule over z1, all else in closed form")


def _elbo(theta: Block, phi: Block, x: Tensor) -> Tensor:
    """E_q log p(x, z) plus the entropy of q: all of it from moments of z1 up to the fourth."""
    (l1, l2), (v1, v2) = phi["loc"], (2 * phi["log_scale"]).exp()
    c, s2 = theta["curvature"], (2 * theta["log_noise_scale"]).exp()
    spread = v2 + c.square() * (4 * l1.square() * v1 + 2 * v1.square())
    squares = (x - l2 - c * (l1.square() + v1 - 1)).square() + spread
    log_likelihood = -0.5 * squares / s2 - 0.5 * (2 * math.pi * s2).log()
    from_prior = (phi["loc"] - theta["prior_loc"]).square().sum() + v1 + v2
    log_prior = -0.5 * from_prior - math.log(2 * math.pi)
    return log_likelihood + log_prior + phi["log_scale"].sum() + math.log(2 * math.pi) + 1


def _ridge(nodes: int, theta: Block, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nodes of z1, log of p(x, z1) times the step there, and mean and variance of z2 given z1 and x."""
    m1, m2 = theta["prior_loc"]
    s2 = (2 * theta["log_noise_scale"]).exp()
    with torch.no_grad():
        far = (1 + (x - m2) / theta["curvature"]).clamp_min(0).nan_to_num(0, 0, 0).sqrt()  # of a line there is none
        low, high = torch.minimum(m1, -far) - REACH, torch.maximum(m1, far) + REACH
        step = (high - low) / (nodes - 1)
        z1 = low + step * torch.arange(nodes, dtype=x.dtype, device=x.device)
    left = x - m2 - theta["curvature"] * (z1.square() - 1)  # normal with variance 1 + s^2 given z1
    log_p = -0.5 * (z1 - m1).square() - 0.5 * left.square() / (1 + s2) - math.log(2 * math.pi) - 0.5 * (1 + s2).log()
    return z1, log_p + step.log(), m2 + left / (1 + s2), s2 / (1 + s2)


def _log_marginal(nodes: int, theta: Block, phi: Block, x: Tensor) -> Tensor:
    return _ridge(nodes, theta, x)[1].logsumexp(0)


def _forward_kl(nodes: int, theta: Block, phi: Block, x: Tensor) -> Tensor:
    """E log q - E log p(z1|x) - E log p(z2|z1, x), all under the posterior."""
    z1, log_p, mean, variance = _ridge(nodes, theta, x)
    weight = log_p.softmax(0)
    # Per unit of z1, whose steps are equal.
    log_posterior = log_p - log_p.logsumexp(0) - (z1[1] - z1[0]).log()
    (l1, l2), (v1, v2) = phi["loc"], (2 * phi["log_scale"]).exp()
    squares = (z1 - l1).square() / v1 + ((mean - l2).square() + variance) / v2
    log_q = -0.5 * squares - phi["log_scale"].sum() - math.log(2 * math.pi)
    entropy = 0.5 * (2 * math.pi * math.e * variance).log()
    return (weight * (log_q - log_posterior)).sum() + entropy
