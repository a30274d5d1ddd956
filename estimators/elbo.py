"""Gradients of the evidence lower bound E_q[log p(x, z) - log q(z | x)], averaged over K independent samples.

Notation: h_k = grad_phi log q(z_k) with z_k held (score); P_k = path derivative of log w with the density of q held;
t_k = grad_theta log p(x, z_k).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from .contract import Block, Estimator, Gradient, LatentModel, Parameters, Target, TotalDerivative, Weights
from .guides import DiagonalGaussian


@dataclass(frozen=True)
class ElboEstimator(Estimator):
    """Abstract: both blocks are unbiased for the ELBO, whatever K."""

    family = "elbo"
    snr_slopes = {"theta": 0.5, "phi": 0.5}

    @property
    def targets(self) -> dict[str, Target | None]:
        return {"theta": Target("elbo"), "phi": Target("elbo")}

    def value(self, log_w: Tensor) -> Tensor:
        return log_w.mean(0)


@dataclass(frozen=True)
class ScoreFunction(ElboEstimator):
    """Score function (REINFORCE, likelihood ratio, black-box variational inference).

    .. math:: K^{-1} \\sum_k \\log w_k \\, h_k

    Needs nothing of the model but its value. The term E[-h] = 0 is dropped.

    Warning:
        The variance grows with \\|log w\\|, so also with an additive constant, and does not vanish at q = posterior.

    References:
        Williams (1992); Paisley, Blei & Jordan (2012); Ranganath, Gerrish & Blei (2014).

    Example:
        >>> ScoreFunction(num_samples=2).weights(torch.tensor([1.0, 3.0])).score
        tensor([0.5000, 1.5000])
    """

    name = "score-function"
    citations = ("williams1992", "paisley2012", "ranganath2014")

    def weights(self, log_w: Tensor) -> Weights:
        return Weights(path=None, score=log_w / self.num_samples, model=1 / self.num_samples)


@dataclass(frozen=True)
class LeaveOneOut(ElboEstimator):
    """Score function with the mean of the other samples as baseline (RLOO, VarGrad, log-variance loss).

    .. math:: (K-1)^{-1} \\sum_k (\\log w_k - \\overline{\\log w}) \\, h_k

    Per draw this is -1/2 the phi-gradient of the unbiased sample variance of log w with the z_k held.

    Warning:
        Divided by K in place of K - 1 it is (K-1)/K of the gradient; without the 1/2 of the log-variance form, twice.

    References:
        Salimans & Knowles (2014); Kool, van Hoof & Welling (2019); Richter et al. (2020).

    Example:
        >>> LeaveOneOut(num_samples=2).weights(torch.tensor([1.0, 3.0])).score
        tensor([-1.,  1.])
    """

    name = "leave-one-out"
    citations = ("salimans2014", "kool2019", "richter2020")
    min_num_samples = 2
    num_samples: int = 2

    def weights(self, log_w: Tensor) -> Weights:
        centred = log_w - log_w.mean(0)
        return Weights(path=None, score=centred / (self.num_samples - 1), model=1 / self.num_samples)


@dataclass(frozen=True)
class Reparameterization(ElboEstimator):
    """Reparameterisation with the total derivative (pathwise, SGVB).

    .. math:: K^{-1} \\sum_k \\nabla_\\phi \\log w(T_\\phi(\\epsilon_k)) = K^{-1} \\sum_k (P_k - h_k)

    References:
        Kingma & Welling (2014); Rezende, Mohamed & Wierstra (2014).

    Example:
        >>> Reparameterization(num_samples=2).weights(torch.zeros(2))
        TotalDerivative(path=0.5, score=-0.5, model=0.5)
    """

    name = "reparameterization"
    citations = ("kingma2014", "rezende2014")
    needs = frozenset({"reparameterizable"})

    def weights(self, log_w: Tensor) -> Weights:
        return TotalDerivative.of(1 / self.num_samples, model=1 / self.num_samples)


@dataclass(frozen=True)
class StickingTheLanding(ElboEstimator):
    """Path derivative alone (sticking the landing): the score term, zero in expectation, is left out.

    .. math:: K^{-1} \\sum_k P_k

    Exactly zero per draw at q = posterior.

    Warning:
        Not always less noisy: for Gaussians it beats the total derivative iff q's variance exceeds half the posterior's.
        Valid for the ELBO alone; applied to an importance-weighted bound with K > 1 it is ``iwae-stl``, which is biased.

    References:
        Roeder, Wu & Duvenaud (2017).

    Example:
        >>> StickingTheLanding(num_samples=4).weights(torch.zeros(4))
        Weights(path=0.25, score=None, model=0.25)
    """

    name = "sticking-the-landing"
    citations = ("roeder2017",)
    needs = frozenset({"reparameterizable"})

    def weights(self, log_w: Tensor) -> Weights:
        return Weights(path=1 / self.num_samples, score=None, model=1 / self.num_samples)


@dataclass(frozen=True)
class ReparameterizationAnalyticKL(ElboEstimator):
    """Reparameterised likelihood, closed-form KL to the prior.

    .. math:: \\nabla \\{ K^{-1} \\sum_k \\log p_\\theta(x | T_\\phi(\\epsilon_k)) - KL(q_\\phi(z|x) \\| p_\\theta(z)) \\}

    No weights rule, because the KL is not a function of the samples: it overrides :meth:`gradient`.

    Warning:
        Not uniformly better than the total derivative, and not zero at q = posterior.

    References:
        Kingma & Welling (2014), appendix B.

    Example:
        >>> str(ReparameterizationAnalyticKL().targets["phi"]), ReparameterizationAnalyticKL().targets["phi"].unbiased
        ('elbo', True)
    """

    name = "reparameterization-analytic-kl"
    citations = ("kingma2014",)
    needs = frozenset({"reparameterizable", "gaussian", "analytic_kl"})

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        def objective(parameters: dict[str, Block]) -> tuple[Tensor, Tensor]:
            guide = _gaussian(model.guide(parameters["phi"]))
            prior = _gaussian(model.prior(parameters["theta"]))
            log_likelihood = model.log_likelihood(parameters["theta"], guide.transform(noise))
            value = (log_likelihood.mean(0) - guide.kl(prior)).mean()
            return value, value.detach()

        gradient, value = grad(objective, has_aux=True)(parameters)
        return Gradient(value, gradient["theta"], gradient["phi"])


def _gaussian(density: object) -> DiagonalGaussian:
    if not isinstance(density, DiagonalGaussian):
        raise TypeError(f"a diagonal Gaussian is needed here, not {type(density).__name__}")
    return density
