"""Baselines of the score function: what is subtracted from log w before it multiplies the score.

A baseline that does not depend on the sample whose score it meets changes nothing in expectation, since E h = 0. What is
learnt is learnt from earlier draws, and stands in the estimator's ``state``. Notation as in :mod:`estimators.elbo`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from .contract import Block, Gradient, LatentModel, Parameters, Refusal, Weights
from .elbo import ElboEstimator
from .learning import adam, parts
from .trees import tree_map


@dataclass(frozen=True)
class MovingAverageBaseline(ElboEstimator):
    """Score function with a moving average of earlier values of log w as baseline.

    .. math:: K^{-1} \\sum_k (\\log w_k - b) \\, h_k, \\qquad b \\leftarrow \\beta \\, b + (1 - \\beta) \\overline{\\log w}

    where b is the average *before* this draw came in. It starts at the first draw's mean; before that it is zero.

    Arguments:
        num_samples: K.
        decay: beta, of the average, for each draw.
        per_point: one average for each data point; ``false`` takes one for all, as minibatches need it.

    Warning:
        Updated before it is used it contains the current sample, and the expectation is (1 - (1 - beta) / K) of the
        gradient for K samples a draw, a bias that adaptive optimisers hide.

    References:
        Williams (1992); Ranganath, Gerrish & Blei (2014); Mnih & Gregor (2014).

    Example:
        >>> b = MovingAverageBaseline(num_samples=2, state={"mean": torch.tensor(1.0)})
        >>> b.weights(torch.tensor([1.0, 3.0])).score
        tensor([0., 1.])
    """

    decay: float = 0.9
    per_point: bool = True

    name = "moving-average-baseline"
    citations = ("williams1992", "ranganath2014", "mnih2014")
    warm_up = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay < 1:
            raise Refusal(f"{self.label()} takes decay from 0 to below 1, not {self.decay}")

    def weights(self, log_w: Tensor) -> Weights:
        baseline = 0.0 if self.state is None else self.state["mean"]
        return Weights(path=None, score=(log_w - baseline) / self.num_samples, model=1 / self.num_samples)

    def adapted(self, model: LatentModel, parameters: Parameters, noise: Any) -> MovingAverageBaseline:
        seen = log_weights(model, parameters, noise).mean(0)
        if not self.per_point:
            seen = seen.mean()
        old = seen if self.state is None else self.state["mean"]
        return replace(self, state={"mean": self.decay * old + (1 - self.decay) * seen})


@dataclass(frozen=True)
class NetworkBaseline(ElboEstimator):
    """Score function with a baseline that a network computes from the data (neural variational inference, NVIL).

    .. math:: K^{-1} \\sum_k (\\log w_k - b_\\psi(x)) \\, h_k, \\qquad b_\\psi(x) = c + s \\, \\mathrm{net}_\\psi(x)

    with moving averages c and s of the mean and the standard deviation of log w over earlier draws, and a network of one
    tanh layer that takes steps of Adam on the squared error E (log w - b)^2 of earlier draws. Of x it sees deviations from
    the data points' mean, divided by their root mean square.

    Arguments:
        num_samples: K.
        hidden: width of the layer.
        rate: step size.
        decay: of the moving averages, for each draw.

    Warning:
        The paper also divides the signal by its running standard deviation. That scales the gradient: it is biased, by a
        factor that changes as it goes, so here s scales the baseline alone. Nor may b see z, or learn from it before use.

    References:
        Mnih & Gregor (2014), section 2.3.

    Example:
        >>> sorted(NetworkBaseline.needs)
        ['data']
    """

    hidden: int = 16
    rate: float = 0.02
    decay: float = 0.95

    name = "network-baseline"
    citations = ("mnih2014",)
    needs = frozenset({"data"})
    warm_up = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 1 or not 0 <= self.decay < 1:
            raise Refusal(f"{self.label()} takes hidden >= 1 and decay from 0 to below 1")

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        """The rule, once the baseline is known from the data."""
        if self.state is None:
            return super().gradient(model, parameters, noise)
        baseline = self.state["mean"] + self.state["deviation"] * _network(parts(self.state)[0], model.data)
        known = replace(self, state={"baseline": baseline})
        return super(NetworkBaseline, known).gradient(model, parameters, noise)

    def weights(self, log_w: Tensor) -> Weights:
        baseline = 0.0 if self.state is None else self.state["baseline"]
        return Weights(path=None, score=(log_w - baseline) / self.num_samples, model=1 / self.num_samples)

    def adapted(self, model: LatentModel, parameters: Parameters, noise: Any) -> NetworkBaseline:
        log_w, x = log_weights(model, parameters, noise), model.data
        psi, memory = parts(self.state) if self.state else (_start(x, self.hidden), {})
        mean, deviation = tracked(self.state, log_w, self.decay)

        def error(psi: Block) -> Tensor:
            return ((log_w - mean) / deviation - _network(psi, x)).square().mean()

        psi, memory = adam(psi, memory, grad(error)(psi), self.rate)
        return replace(self, state={"mean": mean, "deviation": deviation, **psi, **memory})


def tracked(state: Block | None, log_w: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Moving averages of the mean of log w, over samples and data points, and of its standard deviation."""
    if state is None:
        mean = log_w.mean()
        square = (log_w - mean).square().mean()
    else:
        mean = decay * state["mean"] + (1 - decay) * log_w.mean()
        square = decay * state["deviation"].square() + (1 - decay) * (log_w - state["mean"]).square().mean()
    return mean, square.sqrt().clamp_min(torch.finfo(log_w.dtype).tiny)


def _start(x: Tensor, hidden: int) -> Block:
    """The network's first parameters, the same always: its output is zero, and no two hidden units are alike."""
    inputs = x.shape[-1]
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(hidden, inputs, generator=generator, dtype=torch.float64) / inputs**0.5
    return {"psi.weight": first.to(x), "psi.bias": x.new_zeros(hidden), "psi.output": x.new_zeros(hidden + 1)}


def _network(psi: Block, x: Tensor) -> Tensor:
    """One number for each data point, ``(points,)``."""
    deviation = x - x.mean(0)
    size = deviation.square().mean().sqrt()
    if len(x) == 1:  # a single point deviates from nothing
        deviation, size = x, x.square().mean().sqrt()
    scaled = deviation / size.clamp_min(torch.finfo(x.dtype).tiny)
    features = torch.tanh(scaled @ psi["psi.weight"].mT + psi["psi.bias"])
    return features @ psi["psi.output"][:-1] + psi["psi.output"][-1]


@dataclass(frozen=True)
class OptimalControlVariate(ElboEstimator):
    """Score function with the variance-minimising multiple of the score subtracted, coordinate by coordinate.

    .. math:: K^{-1} \\sum_k f_k - a^{(-k)} h_k, \\qquad f_k = \\log w_k \\, h_k, \\qquad
              a^{(-k)}_d = \\frac{\\sum_{j \\neq k} f_{jd} h_{jd}}{\\sum_{j \\neq k} h_{jd}^2}

    with f and h means over the data points: a* = Cov(f, h) / Var(h) by the other samples, E h = 0 being known. As a is
    independent of the sample that it meets, the estimate is unbiased. It takes the gradients of the samples apart, so it is
    no weights rule and overrides :meth:`gradient`.

    Arguments:
        num_samples: K >= 4: where data points share parameters, ratios over fewer samples have no variance.

    Warning:
        With a* from the same samples, as the algorithm is printed, the estimate is biased by O(1/K).

    References:
        Paisley, Blei & Jordan (2012); Ranganath, Gerrish & Blei (2014), section 3.2.

    Example:
        >>> OptimalControlVariate(num_samples=8).targets["phi"].unbiased
        True
    """

    num_samples: int = 4

    name = "optimal-control-variate"
    citations = ("paisley2012", "ranganath2014")
    min_num_samples = 4

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        phi = parameters["phi"]
        guide = model.guide(phi)
        z = guide.transform(noise)
        log_p, pull_back = vjp(lambda theta: model.log_joint(theta, z), parameters["theta"])  # type: ignore[misc]
        (theta,) = pull_back(torch.full_like(log_p, 1 / log_p.numel()))
        log_w = log_p - guide.log_prob(z)

        def of_one(z: Any, log_w: Tensor) -> tuple[Block, Block]:
            log_q, pull_back = vjp(lambda phi: model.guide(phi).log_prob(z), phi)  # type: ignore[misc]
            share = torch.full_like(log_q, 1 / log_q.numel())
            return pull_back(log_w * share)[0], pull_back(share)[0]

        signal, score = vmap(of_one)(z, log_w)  # leaves (K, ...)
        return Gradient(log_w.mean(), theta, {name: _controlled(signal[name], score[name]) for name in phi})


def _controlled(signal: Tensor, score: Tensor) -> Tensor:
    """The mean of f - a h over the samples ``(K, ...)``, each with a from the others."""
    others = 1 - torch.eye(len(signal), dtype=signal.dtype, device=signal.device)
    over = torch.tensordot(others, signal * score, 1)
    under = torch.tensordot(others, score.square(), 1)
    factor = torch.where(under > 0, over / torch.where(under > 0, under, 1.0), 0.0)
    return (signal - factor * score).mean(0)


def log_weights(model: LatentModel, parameters: Parameters, noise: Any) -> Tensor:
    """log w, ``(K, *batch)``, as numbers alone."""
    with torch.no_grad():
        guide = model.guide(parameters["phi"])
        z = guide.transform(noise)
        return (model.log_joint(parameters["theta"], z) - guide.log_prob_transformed(noise)).detach()
