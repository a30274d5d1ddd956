"""Exact values and gradients for one scalar latent: sums over a grid of z itself, weighted by the guide's density.

The *value* is summed and then differentiated by autograd with z held, so neither an estimator's algebra nor the guide's
derivative of its draws enters. Grids are uniform in a coordinate y that runs over the whole line (z, log z or logit z):
the trapezoid rule then converges exponentially in 1/step.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad

from estimators import LatentModel, Parameters, Target

from .bounds import bound

Grid = tuple[Tensor, Tensor]
"""z (N, *batch, 1) and dz (N, *batch), the steps in z that stand at the nodes."""
MOST_SAMPLES = 2
NEGLIGIBLE = 1e-9
"""Of a sum, what the terms at the ends of the grid may be."""


def summed(model: LatentModel, parameters: Parameters, target: Target, grid: Grid) -> tuple[float, Parameters] | None:
    """Value and gradient of a bound of at most two samples; ``None`` for more, for what is no bound, and for a mean that does
    not exist, or not on this grid: terms at its ends count."""
    defined = bound(target)
    if defined is None or defined[0] > MOST_SAMPLES:
        return None
    samples, function = defined
    z, dz = grid

    def weighed(p: Parameters) -> tuple[Tensor, Tensor]:
        """Log-weights at the nodes, and the guide's mass there."""
        log_q = model.guide(p["phi"]).log_prob(z)
        return model.log_joint(p["theta"], z) - log_q, log_q.exp() * dz

    if samples == 1:  # bounds of more are logarithms, whose means exist
        log_w, mass = weighed(parameters)
        terms = (mass * function(log_w[None])).abs()
        if not bool((terms[[0, -1]] <= NEGLIGIBLE * terms.sum(0)).all()):
            return None

    def value(p: Parameters) -> Tensor:
        log_w, mass = weighed(p)
        if samples == 1:
            return (mass * function(log_w[None])).sum(0).mean()
        first, second = torch.triu_indices(len(z), len(z))
        orders = torch.where(first == second, 1.0, 2.0).to(mass).reshape(-1, *[1] * (mass.ndim - 1))
        together = orders * mass[first] * mass[second]
        return (together * function(torch.stack([log_w[first], log_w[second]]))).sum(0).mean()

    return float(value(parameters)), grad(value)(parameters)
