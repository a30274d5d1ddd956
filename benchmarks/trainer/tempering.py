"""A weight of the divergence, deterministic warm-up and free bits: other targets, got by tempering the model, so that every ELBO estimator serves them.

Both multiply the divergence of q from the prior by some beta, one number or one for each latent:

    E_q log p(x|z) - sum_d beta_d KL(q_d || p_d)

That is the ELBO of a model with log p_beta(x, z) = log p(x|z) + sum_d beta_d log p(z_d) + (1 - beta_d) log q-bar(z_d), q-bar
being the guide where it stands, held constant: at q = q-bar the gradients of E_q log q-bar and of E_q log q are one. So
whatever is unbiased for the gradient of an ELBO is unbiased for this one's. A multi-sample bound is no such expectation, and
is refused.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from estimators import Block, DiagonalGaussian, Guide, LatentModel, Parameters, Refusal

from .pairing import Pair
from .settings import Objective

APART = frozenset({"analytic_kl", "invertible_prior"})
"""Either says that the model gives its prior and its likelihood apart."""


class Tempered(LatentModel):
    """A model whose prior counts ``beta`` times, a number or ``(D,)``, seen from where its guide stands."""

    lacking = {
        "analytic_kl": "under warm-up or free bits the prior is no longer the one that the closed form knows",
        "invertible_prior": "under warm-up or free bits the prior is mixed with the guide",
    }

    def __init__(self, model: LatentModel, parameters: Parameters, beta: float | Tensor) -> None:
        self.model, self.beta = model, beta
        self.offers = model.offers - APART - {"simulable"}
        with torch.no_grad():
            self.held = model.guide(parameters["phi"]).detach()

    def guide(self, phi: Block) -> Guide:
        return self.model.guide(phi)

    def log_joint(self, theta: Block, z: Any) -> Tensor:
        prior = self.model.prior(theta)
        if isinstance(self.beta, Tensor):
            mixed = (self.beta * _each(prior, z) + (1 - self.beta) * _each(self.held, z)).sum(-1)
        else:
            mixed = self.beta * prior.log_prob(z) + (1 - self.beta) * self.held.log_prob(z)
        return self.model.log_likelihood(theta, z) + mixed

    @property
    def data(self) -> Tensor:
        return self.model.data


def _each(density: Guide, z: Tensor) -> Tensor:
    """log density of each latent on its own, ``(..., D)``."""
    assert isinstance(density, DiagonalGaussian)
    return -0.5 * (((z - density.loc) / density.scale).square() + math.log(2 * math.pi)) - density.log_scale


def tempered(model: LatentModel, parameters: Parameters, beta: float, free_bits: float) -> LatentModel:
    """The model to train with: itself where nothing is asked for.

    Arguments:
        beta: what the divergence of every latent counts.
        free_bits: lambda, in nats: a latent whose divergence, averaged over the minibatch, is below it has beta 0.

    References:
        Higgins et al. (2017) for a weight; Sønderby et al. (2016) for warm-up; Kingma et al. (2016), appendix C.8, for free bits.
    """
    if beta == 1 and not free_bits:
        return model
    if not free_bits:
        return Tempered(model, parameters, beta)
    with torch.no_grad():
        guide, prior = model.guide(parameters["phi"]), model.prior(parameters["theta"])
        assert isinstance(guide, DiagonalGaussian) and isinstance(prior, DiagonalGaussian)
        ratio = guide.log_scale - prior.log_scale
        squares = (2 * ratio).exp() + ((guide.loc - prior.loc) / prior.scale).square()
        divergence = (0.5 * (squares - 1) - ratio).reshape(-1, guide.loc.shape[-1]).mean(0)
    return Tempered(model, parameters, beta * (divergence > free_bits).to(guide.loc.dtype))


def require_temperable(pair: Pair, model: LatentModel, parameters: Parameters, free_bits: float) -> None:
    """Refuse what warm-up or free bits would give a target that nobody has declared.

    Raises:
        Refusal: unless both estimators are unbiased for the ELBO, and the model gives its prior apart.
    """
    for block, estimator in (("theta", pair.theta), ("phi", pair.phi)):
        target = estimator.targets[block]
        if target is None or target.name != "elbo" or not target.unbiased:
            raise Refusal(
                f"KL weights, warm-up and free bits change the ELBO alone; {estimator.label()} estimates {target or 'no target'} "
                f"for {block}"
            )
    if not model.offers & APART:
        raise Refusal("KL weights, warm-up and free bits need a model that gives its prior and its likelihood apart")
    if free_bits and not all(
        isinstance(each, DiagonalGaussian)
        for each in (model.guide(parameters["phi"]), model.prior(parameters["theta"]))
    ):
        raise Refusal("free bits need a guide and a prior that are diagonal Gaussians")


def target_name(pair: Pair, block: str, objective: Objective) -> str:
    """What a block's gradient is of, in words, for the record."""
    target = (pair.theta if block == "theta" else pair.phi).targets[block]
    if target is None:
        return "none declared"
    many = pair.shared and block == "phi" and pair.theta.random_cost
    text = f"{target.name} of as many samples as theta drew" if many else str(target)
    text += "" if target.unbiased else " (biased)"
    weight = f"{objective.kl_weight:g}" if objective.kl_weight != 1 else ""
    if objective.warm_up_epochs:
        text += f" with its KL times beta, until the warm-up ends{f' at {weight}' if weight else ''}"
    elif weight:
        text += f" with its KL times {weight}"
    return text + (
        f" with at least {objective.free_bits:g} nats of KL free in each latent" if objective.free_bits else ""
    )
