"""The ELBO of the density that a multi-sample bound takes for the posterior: where q_IW stands between L_K and log p(x)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from estimators import LatentModel, Parameters

from .likelihood import CHUNK


class CorrectedBounds(NamedTuple):
    """Per data point, in nats, float64 ``(points,)``: in expectation bound <= lower <= ELBO of q_IW <= upper.

    ``bound`` is L_K over the same samples.
    """

    bound: Tensor
    lower: Tensor
    upper: Tensor


@torch.no_grad()
def corrected_bounds(
    model: LatentModel,
    parameters: Parameters,
    num_samples: int,
    generator: torch.Generator,
    *,
    draws: int = 200,
    companions: int = 200,
) -> CorrectedBounds:
    """Bounds of the ELBO of q_IW, the law of one of K samples that is kept with probability proportional to its weight.

    .. math::
        q_{IW}(z) = E_{z_{2:K} \\sim q} \\frac{p(x, z)}{\\hat W}, \\quad
        \\hat W = \\frac1K \\Big\\{ w(z) + \\sum_{k>1} w(z_k) \\Big\\}, \\qquad
        E_{q_{IW}} \\log \\frac{p(x, z)}{q_{IW}(z)} = -E_{q_{IW}} \\log E_{z_{2:K}} \\hat W^{-1}

    The inner mean is over ``companions`` sets of K - 1 samples. They are independent of z for the upper bound, by Jensen's
    inequality; the set that z was chosen from joins them for the lower one, which is L_K with that set alone. Both close in
    as companions grow.

    Arguments:
        num_samples: K. draws: of z. companions: sets, shared by all draws of a data point.

    References:
        Cremer, Morris & Duvenaud (2017) for q_IW and its ELBO; Yin & Zhou (2018) for the lower bound of a density that is a
        mean over others.
    """
    K = num_samples
    guide = model.guide(parameters["phi"])

    def log_weights(count: int) -> Tensor:
        z = guide.transform(guide.noise((count,), generator))
        return (model.log_joint(parameters["theta"], z) - guide.log_prob(z)).double()

    points = log_weights(1).numel()
    size = max(1, CHUNK // (points * 64 * K))  # sets of samples that are alive at once

    def sets(count: int, samples: int) -> list[Tensor]:
        shares = [min(size, count - begin) for begin in range(0, count, size)]
        return [log_weights(share * samples).reshape(share, samples, points) for share in shares]

    others = torch.full((companions, points), -math.inf, dtype=torch.float64)
    if K > 1:
        others = torch.cat([each.logsumexp(1) for each in sets(companions, K - 1)])
    bound, lower, upper = (torch.zeros(points, dtype=torch.float64, device=others.device) for _ in range(3))
    for log_w in sets(draws, K):
        uniform = torch.rand(log_w.shape, generator=generator, dtype=log_w.dtype, device=log_w.device)
        kept = (log_w - torch.log(-torch.log(uniform.clamp_min(1e-300)))).argmax(1, keepdim=True)
        own = log_w.logsumexp(1) - math.log(K)
        cross = -(torch.logaddexp(log_w.take_along_dim(kept, 1), others) - math.log(K))  # (draws, companions, points)
        apart = cross.logsumexp(1)
        bound += own.sum(0) / draws
        upper -= (apart - math.log(companions)).sum(0) / draws
        lower -= (torch.logaddexp(apart, -own) - math.log(companions + 1)).sum(0) / draws
    return CorrectedBounds(bound, lower, upper)
