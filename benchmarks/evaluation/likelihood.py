"""log p(x) by importance sampling with any number of samples, in memory that does not grow with it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from arviz_stats.base import array_stats
from torch import Tensor

from estimators import LatentModel, Parameters

CHUNK = 2**22
"""Numbers of noise that are alive at once."""


@dataclass(frozen=True)
class Likelihood:
    """Per data point, in nats, float64 ``(points,)``.

    ``bound`` is log (1/K) sum_k w_k, a lower bound of log p(x) in expectation; ``elbo`` the mean of log w over the same
    samples, so ``bound - elbo`` estimates KL(q || posterior) from below; ``khat`` the shape of the tail of the weights
    (Vehtari et al., 2024): above 0.7 the bound is not to be believed; NaN where there were too few samples to tell.
    """

    num_samples: int
    bound: Tensor
    elbo: Tensor
    khat: Tensor

    @property
    def kl(self) -> Tensor:
        """Estimate of KL(q(z|x) || p(z|x)), never above it in expectation."""
        return self.bound - self.elbo


@torch.no_grad()
def importance_sampling(
    model: LatentModel, parameters: Parameters, num_samples: int, generator: torch.Generator
) -> Likelihood:
    """L_K of every data point, by a streaming log-sum-exp.

    Arguments:
        num_samples: K, any.
        generator: of the noise; the number of samples in a chunk, and so the numbers, depend on sizes alone.

    References:
        Burda, Grosse & Salakhutdinov (2016), who evaluate with K = 5,000; Vehtari et al. (2024) for k-hat.
    """
    guide = model.guide(parameters["phi"])
    one = guide.log_prob(guide.transform(guide.noise((1,), generator)))
    points = one[0].numel()
    size = max(1, min(num_samples, CHUNK // max(points * 64, 1)))
    kept = math.ceil(3 * math.sqrt(num_samples)) + 1
    total = torch.full((points,), -math.inf, dtype=torch.float64, device=one.device)
    mean = torch.zeros_like(total)
    largest = torch.empty(0, points, dtype=torch.float64, device=one.device)
    for start in range(0, num_samples, size):
        z = guide.transform(guide.noise((min(size, num_samples - start),), generator))
        log_w = (model.log_joint(parameters["theta"], z) - guide.log_prob(z)).double().reshape(-1, points)
        total = torch.logaddexp(total, log_w.logsumexp(0))
        mean += log_w.sum(0)
        both = torch.cat([largest, log_w])
        largest = both.topk(min(kept, len(both)), dim=0).values
    khat = torch.tensor([_shape(column, num_samples) for column in largest.T.cpu().numpy()], dtype=torch.float64)
    return Likelihood(num_samples, total - math.log(num_samples), mean / num_samples, khat)


def _shape(largest: np.ndarray, count: int) -> float:
    """k-hat of weights of which only the largest are known: the rest stand below the tail that is fitted."""
    tail = min(count // 5, math.ceil(3 * math.sqrt(count)))
    if tail < 20 or not np.isfinite(largest).all():
        return math.nan
    weights = np.exp(largest[: tail + 1] - largest[0])
    exceedances = np.sort(weights[:tail] - weights[tail])
    if exceedances[-1] <= 0:
        return math.nan
    khat, _ = array_stats._gpdfit(exceedances)
    return float(khat)


@torch.no_grad()
def active_units(means: Tensor, threshold: float = 1e-2) -> Tensor:
    """Which latents carry something: variance over x of E_q[z | x] above ``threshold``; ``(points, D)`` to ``(D,)``.

    References:
        Burda, Grosse & Salakhutdinov (2016), section 5.2.

    Example:
        >>> active_units(torch.tensor([[1.0, 0.0], [-1.0, 0.01]]))
        tensor([ True, False])
    """
    return means.var(0) > threshold
