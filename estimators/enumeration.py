"""Discrete latents summed out: all of them, or one at a time given a sample of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from .contract import Block, Gradient, Guide, LatentModel, Parameters, Refusal
from .discrete_guides import Bernoulli, Categorical
from .elbo import ElboEstimator
from .trees import tree_map


@dataclass(frozen=True)
class Enumeration(ElboEstimator):
    """The ELBO summed over all states of the latent: the exact gradient, without noise.

    .. math:: \\nabla \\sum_z q_\\phi(z | x) \\, [\\log p_\\theta(x, z) - \\log q_\\phi(z | x)]

    No weights rule, because nothing is sampled: it overrides :meth:`gradient`, and takes of the noise its shape alone.
    Every draw is the same, so its variance is zero.

    Arguments:
        num_samples: always 1; the sum does not sample.

    Warning:
        The number of states grows as 2^D for D binary variables. :class:`LocalExpectation` costs 2 D evaluations a sample.

    References:
        Summed-out ("collapsed") discrete variables are folklore; as an estimator beside others: Liu et al. (2019).

    Example:
        >>> from estimators import get
        >>> str(get("enumeration").targets["phi"])
        'elbo'
    """

    name = "enumeration"
    family = "discrete"
    citations = ("liu2019",)
    needs = frozenset({"enumerable"})
    snr_slopes = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples != 1:
            raise Refusal(f"{self.label()} samples nothing: num_samples must be 1, not {self.num_samples}")

    @classmethod
    def usual_num_samples(cls) -> int:
        return 1

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        def surrogate(theta: Block, guide: Guide) -> tuple[Tensor, Tensor]:
            z = tree_map(_beside, guide.states(), guide.transform(noise))
            log_q = guide.log_prob(z)
            elbo = (log_q.exp() * (model.log_joint(theta, z) - log_q)).sum(0)
            return elbo, elbo

        return surrogate_gradient(surrogate, model, parameters)


@dataclass(frozen=True)
class LocalExpectation(ElboEstimator):
    """Local expectation gradient (LEG): each variable in turn is summed out, given a sample of all others.

    .. math:: K^{-1} \\sum_k \\sum_d \\sum_c \\nabla_\\phi q_d(c) \\; \\log w(z_k \\text{ with } z_{k,d} = c)

    for a guide that is a product of q_d. Of log w only what depends on z_d matters: the rest meets sum_c grad q_d(c) = 0.
    theta and the value take the same sums, averaged over d. With one variable nothing is left to chance.

    Arguments:
        num_samples: K; each costs D C evaluations of log p(x, z) for D variables of C values.

    Warning:
        The states of the *other* variables must be those of one joint sample; with their means in place it is biased.

    References:
        Titsias & Lazaro-Gredilla (2015).

    Example:
        >>> from estimators import get
        >>> get("local-expectation", num_samples=3).num_samples
        3
    """

    name = "local-expectation"
    family = "discrete"
    citations = ("titsias2015",)
    needs = frozenset({"factorised"})

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        def surrogate(theta: Block, guide: Guide) -> tuple[Tensor, Tensor]:
            z, q = neighbours(guide, guide.transform(noise))
            log_p = model.log_joint(theta, z)
            log_w = (log_p - guide.log_prob(z)).detach()  # (C, D, K, *batch)
            q = q.movedim(-1, 1)[:, :, None]  # (C, D, 1, *batch)
            local = (q.detach() * log_w).sum(0).mean(0)
            model_part = (q.detach() * log_p).sum(0).mean(0)
            guide_part = (q * (log_w - log_w.mean(0))).sum((0, 1))
            return (model_part + guide_part).mean(0), local.mean(0)

        return surrogate_gradient(surrogate, model, parameters)


def neighbours(guide: Guide, z: Tensor) -> tuple[Tensor, Tensor]:
    """``(C, D, K, *batch, *event)``: z with its d-th variable set to its c-th value; and q_d(c), ``(C, *batch, D)``.

    Example:
        >>> z, q = neighbours(Bernoulli(torch.zeros(2)), torch.tensor([[1.0, 1.0]]))
        >>> z[:, :, 0]
        tensor([[[0., 1.],
                 [1., 0.]],
        <BLANKLINE>
                [[1., 1.],
                 [1., 1.]]])
        >>> q.shape
        torch.Size([2, 2])
    """
    p = mean_of(guide)
    binary = isinstance(guide, Bernoulli)
    q = torch.stack([1 - p, p]) if binary else p.movedim(-1, 0)
    values = torch.arange(2).to(z) if binary else torch.eye(len(q)).to(z)
    event = values.ndim  # of z's axes: one for the variables, and one for their values where they are one-hot
    variables = q.shape[-1]
    chosen = torch.eye(variables, dtype=torch.bool, device=z.device)
    chosen = chosen.reshape(variables, *[1] * (z.ndim - event), variables, *[1] * (event - 1))
    new = values.reshape(len(q), *[1] * (z.ndim - event + 2), *values.shape[1:])
    return torch.where(chosen, new, z), q


def mean_of(guide: Guide) -> Tensor:
    """E z, ``(*batch, *event)``, of a product of Bernoulli or of categorical variables; differentiable in phi.

    Example:
        >>> mean_of(Bernoulli(torch.tensor([0.0, 2.0])))
        tensor([0.5000, 0.8808])
    """
    if isinstance(guide, Bernoulli):
        return guide.probs
    if isinstance(guide, Categorical):
        return guide.log_probs.exp()
    raise TypeError(f"a product of Bernoulli or categorical variables is needed here, not {type(guide).__name__}")


def surrogate_gradient(
    surrogate: Callable[[Block, Guide], tuple[Tensor, Tensor]], model: LatentModel, parameters: Parameters
) -> Gradient:
    """The gradient, in both blocks, of the mean over data points of a surrogate.

    Arguments:
        surrogate: from theta and a guide that is live in phi, what is to be differentiated and the value, each ``(*batch)``.
    """

    def total(parameters: Parameters) -> tuple[Tensor, Tensor]:
        surrogates, values = surrogate(parameters["theta"], model.guide(parameters["phi"]))
        return surrogates.mean(), values.detach().mean()

    gradient, value = grad(total, has_aux=True)(parameters)
    return Gradient(value, gradient["theta"], gradient["phi"])


def _beside(states: Tensor, z: Tensor) -> Tensor:
    """States ``(S, *event)`` for every data point of z ``(K, *batch, *event)``: ``(S, *batch, *event)``."""
    batch = z.shape[1 : z.ndim - states.ndim + 1]
    one = states.reshape(len(states), *[1] * len(batch), *states.shape[1:])
    return one.expand(-1, *batch, *states.shape[1:])
