"""One surrogate for every estimator that is a weights rule.

    sum_k  a_k P_k + b_k h_k  (phi)      sum_k  c_k t_k  (theta)

One forward and one backward pass through log p(x, z) serve both blocks: it is pulled back with the model weights c, and
each sample's z-gradient is rescaled by a / c before it goes on through the sampling path. So a doubly
reparameterised estimate costs what an importance-weighted one costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import grad, vjp

from .contract import Gradient, LatentModel, Parameters, TotalDerivative
from .trees import tree_leaves, tree_map

if TYPE_CHECKING:
    from .contract import Block, Estimator


def weighted_gradient(estimator: Estimator, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
    """The estimate that ``estimator.weights`` describes, at the latents that ``noise`` gives.

    Arguments:
        estimator: gives ``weights(log_w)`` and ``value(log_w)``.
        model: data, joint density and guide.
        parameters: blocks ``theta`` and ``phi``.
        noise: one replicate's noise, ``(K, *batch, *event)``.

    Returns:
        value (scalar, mean over data points) and gradients shaped as the parameters.
    """
    theta = parameters["theta"]

    def surrogate(phi: Block) -> tuple[Tensor, tuple[Tensor, Block]]:
        guide = model.guide(phi)
        z = guide.transform(noise)
        held = tree_map(torch.Tensor.detach, z)
        log_q = guide.log_prob_transformed(noise)
        log_p, pull_back = vjp(model.log_joint, theta, held)  # type: ignore[misc]
        log_w = (log_p - log_q).detach()
        points = log_w[0].numel()
        weights = estimator.weights(log_w)
        path, score, model_weights = (_spread(weight, log_w, points) for weight in weights)
        if weights[0] is weights[2]:
            model_weights = path  # one and the same: the pull-back needs no rescaling

        cotangent, ratio = _one_pass(path, model_weights, log_w)
        theta_gradient, z_gradient = pull_back(cotangent)
        if model_weights is None:
            theta_gradient = {name: torch.zeros_like(leaf) for name, leaf in theta.items()}
        total = log_w.new_zeros(())
        if path is not None:
            for layer, slope in zip(tree_leaves(z), tree_leaves(z_gradient), strict=True):
                along = slope if ratio is None else append_dims(ratio, layer) * slope
                total = total + (along * layer).sum()
            if isinstance(weights, TotalDerivative):
                total = total - (path * log_q).sum()
            else:
                total = total - (path * guide.detach().log_prob(z)).sum()
        if score is not None and not isinstance(weights, TotalDerivative):
            total = total + (score * guide.log_prob(held)).sum()
        value = estimator.value(log_w)
        value = log_w.new_full((), torch.nan) if value is None else value.mean()
        return total, (value, theta_gradient)

    phi_gradient, (value, theta_gradient) = grad(surrogate, has_aux=True)(parameters["phi"])
    return Gradient(value, theta_gradient, phi_gradient)


def _spread(weight: Tensor | float | None, log_w: Tensor, points: int) -> Tensor | None:
    """A weight as a tensor ``(K, *batch)`` of the mean over data points; an absent or plainly zero one as ``None``."""
    if weight is None or (not isinstance(weight, Tensor) and weight == 0):
        return None
    if isinstance(weight, Tensor) and weight.dtype != log_w.dtype:
        raise TypeError(f"weights must have the type of log_w, {log_w.dtype}, not {weight.dtype}")
    return (torch.as_tensor(weight, dtype=log_w.dtype, device=log_w.device).detach() / points).expand_as(log_w)


def _one_pass(path: Tensor | None, model: Tensor | None, log_w: Tensor) -> tuple[Tensor, Tensor | None]:
    """The cotangent of log p, and the ratio that turns the resulting z-gradient into the path's (``None``: one).

    A model weight that is zero, or so small that dividing by it would overflow, gives way to an amount that is lost in
    rounding, wherever the path needs it.
    """
    if path is None:
        return (torch.zeros_like(log_w) if model is None else model), None
    if model is None or model is path:
        return path, None
    tiny = torch.finfo(log_w.dtype).tiny ** 0.5
    model = torch.where((model.abs() < tiny) & (path != 0), tiny, model)
    return model, torch.where(path == 0, 0.0, path / torch.where(model == 0, 1.0, model))


def append_dims(weight: Tensor, z: Tensor) -> Tensor:
    """``(K, *batch)`` as ``(K, *batch, 1, ...)``, to multiply ``(K, *batch, *event)``."""
    return weight.reshape(weight.shape + (1,) * (z.ndim - weight.ndim))
