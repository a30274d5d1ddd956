"""One surrogate for every estimator that is a weights rule.

    sum_k  a_k P_k + b_k h_k  (phi)      sum_k  c_k t_k  (theta)

One forward and one backward pass through log p(x, z) serve both blocks: it is pulled back with the model weights c, and
each sample's z-gradient is rescaled by a / c before it goes on through the sampling path. So a doubly
reparameterised estimate costs what an importance-weighted one costs.
"""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .contract import Gradient, LatentModel, Parameters, TotalDerivative, Weights
from .pullback import pulled_back
from .trees import tree_leaves, tree_map

if TYPE_CHECKING:
    from .contract import Block, Estimator

_NO_NUMBER = (
    "replicates are computed together, so that a tensor here is no number: torch.where in place of `if`, torch's functions "
    "in place of numpy's, and no .item() or float()"
)
ADVICE = {
    "randomness error mode": "a rule draws no numbers of its own: what is random is the noise that it is given",
    **dict.fromkeys((".item()", "data-dependent control flow", "data pointer"), _NO_NUMBER),
}
"""By what ``vmap`` says, what the author of a rule is to do."""


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

    def sampled(phi: Block) -> tuple[tuple[Tensor, ...], tuple[tuple[Tensor, ...], Tensor, Block]]:
        guide = model.guide(phi)
        z = guide.transform(noise)
        held = tree_map(torch.Tensor.detach, z)
        log_q = guide.log_prob_transformed(noise)
        (log_p,), pull_back, _ = pulled_back(lambda theta, z: ((model.log_joint(theta, z),), ()), theta, held)
        log_w = (log_p - log_q).detach()
        weights, (path, score, model_weights) = ruled(estimator, log_w)
        if weights[0] is weights[2]:
            model_weights = path  # one and the same: the pull-back needs no rescaling

        cotangent, ratio = _one_pass(path, model_weights, log_w)
        theta_gradient, z_gradient = pull_back((cotangent,))
        if model_weights is None:
            theta_gradient = {name: torch.zeros_like(leaf) for name, leaf in theta.items()}
        terms: list[tuple[Tensor, Tensor]] = []  # what phi moves, and its cotangent
        if path is not None:
            slopes = zip(tree_leaves(z), tree_leaves(z_gradient), strict=True)
            terms += [(layer, slope if ratio is None else append_dims(ratio, layer) * slope) for layer, slope in slopes]
            terms.append((log_q if isinstance(weights, TotalDerivative) else guide.detach().log_prob(z), -path))
        if score is not None and not isinstance(weights, TotalDerivative):
            terms.append((guide.log_prob(held), score))
        outputs, cotangents = zip(*terms, strict=True) if terms else ((log_q,), (torch.zeros_like(log_w),))
        value = estimator.value(log_w)
        value = log_w.new_full((), torch.nan) if value is None else value.mean()
        return outputs, (cotangents, value, theta_gradient)

    _, pull_back, (cotangents, value, theta_gradient) = pulled_back(sampled, parameters["phi"])
    (phi_gradient,) = pull_back(cotangents)
    return Gradient(value, theta_gradient, phi_gradient)


def ruled(estimator: Estimator, log_w: Tensor) -> tuple[Weights, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """What a rule gives at ``log_w``, and its parts as tensors ``(K, *batch)`` of the mean over data points; an absent or plainly
    zero part as ``None``.

    Raises:
        TypeError, ValueError: for what is not three parts, or a part of another type or shape: broadcasting would hide it.
        RuntimeError: for what cannot be vectorised, with what to do about it.
    """
    try:
        weights = estimator.weights(log_w)
    except RuntimeError as problem:
        said = str(problem)
        advice = next((words for phrase, words in ADVICE.items() if phrase in said), None)
        if advice is None:
            raise
        raise RuntimeError(f"{advice} (torch says: {said.splitlines()[0]})") from problem
    if not isinstance(weights, tuple) or len(weights) != len(Weights._fields):
        parts = f" of {len(weights)}" if isinstance(weights, (tuple, list)) else ""
        raise TypeError(f"a rule gives Weights(path, score, model), not a {type(weights).__name__}{parts}")
    path, score, model = (_part(name, part, log_w) for name, part in zip(Weights._fields, weights, strict=True))
    return weights, (path, score, model)


def _part(name: str, weight: object, log_w: Tensor) -> Tensor | None:
    points = log_w[0].numel()
    if isinstance(weight, Tensor):
        if weight.dtype != log_w.dtype:
            raise TypeError(f"weights must have the type of log_w, {log_w.dtype}, not {weight.dtype}")
        if weight.shape not in (log_w.shape, ()):
            allowed = f"{tuple(log_w.shape)}, the shape of log_w (K, *batch), or a number"
            raise ValueError(f"weights: {name} has shape {tuple(weight.shape)}; it must be {allowed}")
        return (weight.detach() / points).expand_as(log_w)
    if weight is None or weight == 0:
        return None
    if not isinstance(weight, Real):
        raise TypeError(f"weights: {name} must be a tensor, a number or None, not a {type(weight).__name__}")
    return log_w.new_full((), float(weight) / points).expand_as(log_w)


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
