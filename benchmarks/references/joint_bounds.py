"""Exact importance-weighted bounds of any K where latents and data are jointly normal and the guide is any normal density.

With z = a + G eps, G a factor of q's covariance, and the posterior N(m, R R'), the log-weights are a quadratic form in normal
noise (:mod:`.quadratic_form`). For R^-1 G = U diag(s) V' and d = R^-1 (a - m), in eta = V'eps,

    log r = log w - log p(x) = log|det G| - log|det R| - |d|^2 / 2 - sum_d s_d (U'd)_d eta_d + (1 - s_d^2) / 2 eta_d^2.

The gradient of L_K is E sum_k w~_k of that of log w_k at fixed eps. As log w is quadratic in eps, it needs of the weighted noise
its mean e and covariance C alone: it is the gradient of the ELBO of a guide N(a + G e, G C G'), with e and C held.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.func import grad

from estimators import Parameters

from .joint_gaussian import JointGaussian
from .quadratic_form import QuadraticForm, tables, weighted_moments


def iwae(
    law: Callable[[Parameters], JointGaussian], parameters: Parameters, num_samples: int
) -> tuple[float, Parameters]:
    """L_K, averaged over the data, and its gradient, where ``law`` gives the joint law at any parameters (float64).

    Raises:
        QuadratureError: where the integrals do not settle, or take too much.
    """
    here = law(parameters)
    means, factor = here.posterior()
    left, stretched, right = torch.linalg.svd(torch.linalg.solve(factor, here.guide_factor))
    away = torch.linalg.solve(factor, (here.guide_mean - means).mT).mT @ left
    shifts = (-away * stretched).numpy()
    constants = (stretched.log().sum() - away.square().sum(1) / 2).tolist()
    curvature = tuple(((1 - stretched) * (1 + stretched) / 2).tolist())
    bounds, firsts, seconds = [], [], []
    for constant, shift in zip(constants, shifts, strict=True):
        sums = tables(QuadraticForm(constant, tuple(shift.tolist()), curvature), num_samples)
        first, second = weighted_moments(sums, num_samples, right.mT.numpy())
        bounds.append(sums.log_mean(num_samples).value)
        firsts.append(first)
        seconds.append(second - np.outer(first, first))
    mean = torch.from_numpy(np.stack(firsts))
    spread = torch.linalg.cholesky(torch.from_numpy(np.mean(seconds, axis=0)))
    value = float(here.value("log_marginal")) + float(np.mean(bounds))
    return value, grad(lambda p: law(p).elbo(mean, spread))(parameters)
