"""Estimators for discrete latents that need no relaxed samples: antithetic pairs, and a Taylor expansion taken away.

Antithetic pairs share their uniform numbers u: z = 1[u < p], z' = 1[1 - u < p] with p = sigmoid(a), elementwise, a the
guide's logits. Each is a sample of q, so theta and the value take the mean over both. One pair is *one* of ``num_samples``,
and costs two evaluations of log p(x, z).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from .contract import Block, Estimator, Gradient, Guide, LatentModel, Parameters
from .discrete_guides import Bernoulli
from .elbo import ElboEstimator
from .enumeration import mean_of, surrogate_gradient
from .multisample import ImportanceWeighted
from .subsets import logsumexp_of_others


class Pairs(Estimator):
    """Abstract: K antithetic pairs of Bernoulli latents, whose gradient is a coefficient for each logit of each pair."""

    @abstractmethod
    def slopes(self, log_w: Tensor, z: Tensor, noise: Tensor, logits: Tensor) -> Tensor:
        """Derivative by the logits of what is maximised, *summed* over the K pairs, with log w as a function of z held.

        Arguments:
            log_w: of both halves of each pair, ``(2, K, *batch)``. z: ``(2, K, *batch, D)``.
            noise: ``(K, *batch, D)``. logits: ``(*batch, D)``.
        """

    @abstractmethod
    def density(self, log_w: Tensor) -> Tensor:
        """What multiplies the gradient of log p(x, z) for theta, and minus that of log q for phi, ``(2, K, *batch)``."""

    def halves(self, guide: Guide, noise: Tensor) -> Tensor:
        """z and z' of each pair, ``(2, K, *batch, D)``."""
        return torch.stack([guide.transform(noise), guide.transform(1 - noise)])

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        def surrogate(theta: Block, guide: Guide) -> tuple[Tensor, Tensor]:
            logits = _bernoulli(guide).logits
            z = self.halves(guide, noise)
            log_p, log_q = model.log_joint(theta, z), guide.log_prob(z)
            log_w = (log_p - log_q).detach()
            density = self.density(log_w)
            total = (density * log_p).sum((0, 1))
            if isinstance(self, ImportanceWeighted):
                total = total - (density * log_q).sum((0, 1))
            slopes = self.slopes(log_w, z, noise, logits.detach())
            value = self.value(log_w.transpose(0, 1))
            assert value is not None
            return total + (slopes * logits).sum(-1), value.mean(0)

        return surrogate_gradient(surrogate, model, parameters)


@dataclass(frozen=True)
class ElboPairs(Pairs, ElboEstimator):
    """Abstract: pairs for the ELBO, where the term E[-grad log q] = 0 is dropped."""

    family = "discrete"
    needs = frozenset({"bernoulli"})

    def density(self, log_w: Tensor) -> Tensor:
        return torch.full_like(log_w, 1 / (2 * self.num_samples))


@dataclass(frozen=True)
class ARM(ElboPairs):
    """Augment-REINFORCE-merge: a difference over an antithetic pair, times its uniform number.

    .. math:: K^{-1} \\sum_k \\bigl( \\log w(z'_k) - \\log w(z_k) \\bigr) (u_k - \\tfrac12), \\qquad
              z = 1[u < \\sigma(a)], \\quad z' = 1[u > \\sigma(-a)]

    by the logits a of Bernoulli variables, and on to phi by the chain rule. It needs more than log-weights, so it is no
    weights rule and overrides :meth:`gradient`.

    Arguments:
        num_samples: K pairs, 2 K evaluations.

    Warning:
        With z = 1[u > sigma(a)] in place of 1[u < sigma(a)] the sign turns. ``disarm`` has less variance at the same cost.

    References:
        Yin & Zhou (2019).

    Example:
        >>> str(ARM(num_samples=3).targets["phi"])
        'elbo'
    """

    name = "arm"
    citations = ("yin2019",)

    def slopes(self, log_w: Tensor, z: Tensor, noise: Tensor, logits: Tensor) -> Tensor:
        return ((log_w[1] - log_w[0])[..., None] * (noise - 0.5)).mean(0)


@dataclass(frozen=True)
class DisARM(ElboPairs):
    """DisARM, or unbiased uniform gradient (U2G): ARM with its uniform number integrated out, given the pair.

    .. math:: K^{-1} \\sum_k \\tfrac12 \\bigl( \\log w(z_k) - \\log w(z'_k) \\bigr) (z_k - z'_k) \\, \\sigma(|a|)

    by the logits a of Bernoulli variables, elementwise, and on to phi by the chain rule: only where the two halves of a pair
    differ is there a gradient. Never more variance than ``arm``. It overrides :meth:`gradient`, as ``arm`` does.

    Arguments:
        num_samples: K pairs, 2 K evaluations.

    Warning:
        sigma(|a|), not sigma(a): the probability that an element of the pair differs is 2 sigma(-|a|).

    References:
        Dong, Mnih & Tucker (2020); Yin, Ho, Yan, Qian & Zhou (2020) for the same estimator as U2G.

    Example:
        >>> z = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
        >>> DisARM().slopes(torch.tensor([[3.0], [1.0]]), z, torch.zeros(1, 2), torch.zeros(2))
        tensor([0.5000, 0.0000])
    """

    name = "disarm"
    citations = ("dong2020", "yin2020")

    def slopes(self, log_w: Tensor, z: Tensor, noise: Tensor, logits: Tensor) -> Tensor:
        return (pair_difference(z, logits) * (log_w[0] - log_w[1])[..., None]).mean(0)


@dataclass(frozen=True)
class LocalDisARM(Pairs, ImportanceWeighted):
    """DisARM for the importance-weighted bound: each sample is varied as a pair, the others held.

    .. math:: \\tfrac12 \\sum_{s} \\Bigl( \\sum_k \\tfrac12 \\bigl( f^s_k(z_k) - f^s_k(z'_k) \\bigr) (z_k - z'_k) \\, \\sigma(|a|)
              - \\sum_k \\tilde w^s_k h^s_k \\Bigr), \\qquad f^s_k(z) = \\log K^{-1} \\Bigl( w(z) + \\sum_{c \\ne k} w^s_c \\Bigr)

    s runs over the two halves of all pairs: the others are z of their pairs, then z'. The first term goes by the logits a of
    Bernoulli variables, elementwise, and on to phi by the chain rule; the second is the bound's own dependence on log q. It
    overrides :meth:`gradient`, as ``arm`` does.

    Arguments:
        num_samples: K >= 2 pairs, 2 K evaluations; the target is the bound of K samples, not of 2 K.

    Warning:
        DisARM of the whole bound, all K samples varied at once as one pair, is unbiased too, and noisier.

    References:
        Dong, Mnih & Tucker (2020), section on multi-sample bounds.

    Example:
        >>> str(LocalDisARM(num_samples=3).targets["phi"])
        'iwae-3'
    """

    num_samples: int = 2

    name = "local-disarm"
    family = "discrete"
    citations = ("dong2020",)
    needs = frozenset({"bernoulli"})
    min_num_samples = 2
    snr_slopes = {"theta": 0.5}

    def density(self, log_w: Tensor) -> Tensor:
        return log_w.softmax(1) / 2

    def slopes(self, log_w: Tensor, z: Tensor, noise: Tensor, logits: Tensor) -> Tensor:
        others = torch.stack([logsumexp_of_others(half) for half in log_w])
        # f(z) - f(z'), each as what its weight adds to the others: nothing large cancels.
        gain = _log1p_exp(log_w[0] - others) - _log1p_exp(log_w[1] - others)
        return (pair_difference(z, logits) * gain.mean(0)[..., None]).sum(0)


@dataclass(frozen=True)
class MuProp(ElboEstimator):
    """MuProp: the score function with the first-order Taylor expansion about the mean field as control variate.

    .. math:: K^{-1} \\sum_k \\bigl( f(z_k) - f(\\bar z) - g \\cdot (z_k - \\bar z) \\bigr) h_k
              + g \\cdot \\nabla_\\phi E_q z, \\qquad f = \\log w, \\; \\bar z = E_q z, \\; g = \\nabla f(\\bar z)

    with zbar and g held, and log q in f continued linearly between its corners, which the expansion takes away entirely.
    It overrides :meth:`gradient`, since the expansion is not made of log-weights; K samples cost K + 1 evaluations. No noise
    is left in phi where log p(x, z) is linear in z.

    Arguments:
        num_samples: K.

    Warning:
        zbar is held wherever the expansion is made, in f(zbar), g and z - zbar: only E_q z in the last term is live in phi.

    References:
        Gu, Levine, Sutskever & Mnih (2016).

    Example:
        >>> sorted(MuProp.needs)
        ['factorised', 'relaxable']
    """

    name = "muprop"
    family = "discrete"
    citations = ("gu2016",)
    needs = frozenset({"factorised", "relaxable"})

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        def surrogate(theta: Block, guide: Guide) -> tuple[Tensor, Tensor]:
            z, mean = guide.transform(noise), mean_of(guide)
            there, slope = self.expansion(model, theta, guide, mean.detach())
            log_p, log_q = model.log_joint(theta, z), guide.log_prob(z)
            log_w = (log_p - log_q).detach()
            signal = log_w - there - _dot(slope, z - mean.detach(), log_w.ndim)
            phi_part = (signal * log_q).mean(0) + _dot(slope, mean, log_w.ndim - 1)
            return log_p.mean(0) + phi_part, log_w.mean(0)

        return surrogate_gradient(surrogate, model, parameters)

    def expansion(self, model: LatentModel, theta: Block, guide: Guide, at: Tensor) -> tuple[Tensor, Tensor]:
        """log w, ``(*batch)``, and its slope in z, at a place between the corners ``(*batch, *event)``; both held."""

        def log_weight(z: Tensor) -> tuple[Tensor, Tensor]:
            values = (model.log_joint(theta, z[None]) - guide.log_prob(z[None]))[0]
            return values.sum(), values

        slope, there = grad(log_weight, has_aux=True)(at)
        return there.detach(), slope.detach()


def pair_difference(z: Tensor, logits: Tensor) -> Tensor:
    """1/2 (z - z') sigmoid(\\|logits\\|): what multiplies f(z) - f(z') in DisARM, ``(K, *batch, D)``."""
    return 0.5 * (z[0] - z[1]) * logits.abs().sigmoid()


def _dot(slope: Tensor, z: Tensor, ndim: int) -> Tensor:
    """Summed over a latent's own axes, all but the first ``ndim``."""
    return (slope * z).flatten(ndim).sum(-1)


def _log1p_exp(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def _bernoulli(guide: Guide) -> Bernoulli:
    if not isinstance(guide, Bernoulli):
        raise TypeError(f"a product of Bernoulli variables is needed here, not {type(guide).__name__}")
    return guide
