"""Doubly reparameterised gradients in both blocks: the prior's score goes along the prior's own path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp

from .contract import Block, Gradient, LatentModel, Parameters, Weights
from .multisample import ImportanceWeighted
from .surrogate import append_dims, weighted_gradient
from .trees import tree_map


@dataclass(frozen=True)
class GDReG(ImportanceWeighted):
    """Generalised doubly reparameterised gradient: DReG for phi, and for theta of the prior as well.

    .. math:: \\sum_k \\tilde w_k^2 P_k \\quad (\\phi), \\qquad
              \\sum_k \\tilde w_k \\nabla_\\theta \\log p_\\theta(x | z_k) + \\Big[\\tilde w_k (1 - \\tilde w_k)
              \\nabla_z \\log w_k + \\tilde w_k \\nabla_z \\log \\tfrac{q(z_k)}{p_\\theta(z_k)}\\Big]
              \\nabla_\\theta T_p(\\bar\\epsilon_k; \\theta) \\quad (\\theta), \\qquad
              \\bar\\epsilon_k = T_p^{-1}(z_k; \\theta)

    The prior's score is re-expressed: for any g(z), with z from q and the prior's map T_p held at the noise that gives z,

    .. math:: E_q[g \\, \\nabla_\\theta \\log p_\\theta(z)]
              = E_q\\big[(\\nabla_z g + g \\, \\nabla_z \\log \\tfrac{q}{p_\\theta}) \\nabla_\\theta T_p\\big]

    used with g = w~_k, whose z_k-derivative is w~_k (1 - w~_k) of that of log w_k. As log w is the sum of log p(x|z) and
    log p(z)/q(z), the bracket is w~ (1 - w~) of the likelihood's slope and w~^2 of that of log q(z)/p(z), which is what is
    computed. The likelihood's own parameters keep the usual rule, which has no noise to reparameterise. No weights rule
    alone, because theta needs more than the log-weights: it overrides :meth:`gradient`, at two evaluations a sample.

    With several stochastic layers P_k goes along the joint path, the density of q held but deeper layers live in the
    shallower z: with such a guide phi's part is ``dreg`` draw by draw. T_p is the prior's joint path.

    Warning:
        Not always less noisy than the usual rule for theta: compare it with ``dreg``'s.

    References:
        Bauer & Mnih (2021); Tucker, Lawson, Gu & Maddison (2019).

    Example:
        >>> GDReG(num_samples=2).weights(torch.tensor([0.0, 0.0])).path
        tensor([0.2500, 0.2500])
    """

    name = "gdreg"
    citations = ("bauer2021", "tucker2019")
    needs = frozenset({"reparameterizable", "invertible_prior"})
    snr_slopes = {"theta": 0.5, "phi": 0.5}
    snr_tail_ratios = {"theta": 0.5, "phi": 0.75}

    def weights(self, log_w: Tensor) -> Weights:
        w = log_w.softmax(0)
        return Weights(path=w.square(), score=None, model=w)

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        usual = weighted_gradient(self, model, parameters, noise)
        theta, guide = parameters["theta"], model.guide(parameters["phi"])
        z = guide.transform(noise)
        prior = model.prior(theta)
        log_likelihood, pull_likelihood = vjp(model.log_likelihood, theta, z)  # type: ignore[misc]
        w = (log_likelihood + prior.log_prob(z) - guide.log_prob_transformed(noise)).softmax(0)
        of_likelihood, likelihood_slope = pull_likelihood(w / w[0].numel())
        ratio_slope = grad(lambda z: ((guide.log_prob(z) - prior.log_prob(z)) * w.square() / w[0].numel()).sum())(z)
        # (1 - w~) w~ of the one and w~^2 of the other
        along = tree_map(lambda slope, ratio: append_dims(1 - w, slope) * slope + ratio, likelihood_slope, ratio_slope)
        base = prior.inverse(z)

        def path(theta: Block) -> Any:
            return model.prior(theta).transform(base)

        _, pull_path = vjp(path, theta)  # type: ignore[misc]
        (of_prior,) = pull_path(along)
        return usual._replace(theta={name: of_likelihood[name] + of_prior[name] for name in theta})
