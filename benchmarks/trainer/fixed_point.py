"""Where an optimiser settles when it is fed an unbiased but skewed gradient: not where the gradient's mean is zero.

Adagrad, RMSprop and Adam divide a gradient by the root of an average of squares that holds this very gradient. Its large
values are shrunk by their own size, so a skewed gradient's mean is no longer what counts. For a Gaussian posterior with
standard deviation s, the path gradient of q's log-scale is 1 - rho eps^2, rho = (scale / s)^2: mean zero at rho = 1, and
skewed. RMSprop without memory follows its sign, and settles where its median is zero: rho = 1 / 0.4549, a scale too large
by half. Sticking the landing gives (1 - rho) eps^2, which is never of the wrong sign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from estimators import Estimator

from ..problems import Gaussian1D
from ..streams import generator

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
}


@dataclass(frozen=True)
class Settled:
    """Mean over chains of log (scale / s) in the last third of the steps, and its standard error."""

    log_ratio: float
    standard_error: float


def settle(
    estimator: Estimator,
    optimiser: str,
    *,
    steps: int = 2000,
    chains: int = 400,
    rate: float = 0.02,
    seed: int = 0,
    **settings: float,
) -> Settled:
    """Let many chains of one optimiser fit the scale of a Gaussian guide, its location held at the posterior's.

    Arguments:
        estimator: gives each step's gradient, one estimate for each chain.
        optimiser: a key of :data:`OPTIMISERS`; ``settings`` are its own, such as ``alpha`` or ``betas``.
        steps: the rate falls linearly to a hundredth over the first two thirds of them, then stays.

    References:
        Duchi, Hazan & Singer (2011); Kingma & Ba (2015); pymc issue 8444, where ADVI's scales were off.
    """
    problem = Gaussian1D(loc=0.5, scale=0.5**0.5, x=1.0)  # N(0.5, 0.5) is the posterior of N(0, 1) and x = 1
    stream = generator("cpu", "fixed point", seed)
    log_scale = problem.parameters["phi"]["log_scale"].expand(chains, 1).clone().reshape(chains, -1)
    exact = log_scale[0].clone()
    optimizer = OPTIMISERS[optimiser]([log_scale], lr=rate, maximize=True, **settings)
    theta, loc = problem.parameters["theta"], problem.parameters["phi"]["loc"]
    shape = problem.parameters["phi"]["log_scale"].shape

    def slope(leaf: Tensor, noise: Tensor) -> Tensor:
        parameters = {"theta": theta, "phi": {"loc": loc, "log_scale": leaf.reshape(shape)}}
        return estimator.gradient(problem, parameters, noise).phi["log_scale"].reshape(-1)

    last = torch.zeros(chains, dtype=log_scale.dtype)
    count = 0
    for step in range(steps):
        (draw,) = estimator.draws(problem.guide(problem.parameters["phi"]), chains, stream)
        log_scale.grad = vmap(slope)(log_scale, draw.noise)
        optimizer.param_groups[0]["lr"] = rate * max(0.01, 1 - 1.5 * step / steps)
        optimizer.step()
        if step >= 2 * steps // 3:
            last += (log_scale - exact).mean(1)
            count += 1
    each = last / count
    return Settled(float(each.mean()), float(each.std() / chains**0.5))
