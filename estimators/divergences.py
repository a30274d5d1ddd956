"""Divergences of q from the posterior other than Kullback-Leibler's.

An f-divergence enters as E_q F(log w), F(t) = -f(e^t) up to a multiple of e^t - 1, which adds nothing that depends on phi.
Every F here rises in t and is concave in w, so that E_q F(log w) <= F(log p(x)), with the gap the divergence; F(0) = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .contract import Estimator, Refusal, Target, TotalDerivative, Weights


class Divergence(NamedTuple):
    """F, its slope F', and F' - F'', the factor of the doubly reparameterised form; each a function of log w."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    doubly: Callable[[Tensor], Tensor]


def _tail(t: Tensor) -> Tensor:
    """e^t log(1 + e^-t), which tends to 1: written out where its factors would overflow and underflow."""
    return torch.where(t > 30, 1 - 0.5 * (-t.clamp_min(30)).exp(), t.clamp_max(30).exp() * softplus(-t.clamp_max(30)))


DIVERGENCES = {
    # KL(q || p): the ELBO
    "kl": Divergence(lambda t: t, torch.ones_like, torch.ones_like),
    # int (sqrt p - sqrt q)^2
    "hellinger": Divergence(lambda t: 2 * torch.expm1(t / 2), lambda t: (t / 2).exp(), lambda t: (t / 2).exp() / 2),
    # chi^2(q || p) = E_q[q / p] - 1
    "chi-square": Divergence(lambda t: -torch.expm1(-t), lambda t: (-t).exp(), lambda t: 2 * (-t).exp()),
    # (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2
    "jensen-shannon": Divergence(
        lambda t: (softplus(t) + _tail(t)) / 2 - math.log(2), lambda t: _tail(t) / 2, lambda t: t.sigmoid() / 2
    ),
    # KL(q || m)
    "skew-kl": Divergence(lambda t: softplus(t) - math.log(2), torch.sigmoid, lambda t: t.sigmoid().square()),
}
"""By name; above each the divergence of q and p that F(log p(x)) - E_q F(log w) is where p is normalised."""


@dataclass(frozen=True)
class FDivergenceEstimator(Estimator):
    """Abstract: both blocks are unbiased for E_q F(log w), whatever K."""

    divergence: str = "jensen-shannon"

    family = "divergences"
    citations: ClassVar[tuple[str, ...]] = ("wan2020",)
    snr_slopes = {"theta": 0.5, "phi": 0.5}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.divergence not in DIVERGENCES:
            raise Refusal(f"{self.label()} takes divergence={'|'.join(DIVERGENCES)}, not {self.divergence!r}")

    @property
    def targets(self) -> dict[str, Target | None]:
        target = Target("f_divergence", setting=self.divergence)
        return {"theta": target, "phi": target}

    @property
    def function(self) -> Divergence:
        """F and its derivatives."""
        return DIVERGENCES[self.divergence]

    def value(self, log_w: Tensor) -> Tensor:
        return self.function.value(log_w).mean(0)


@dataclass(frozen=True)
class FDivergence(FDivergenceEstimator):
    """Any f-divergence, reparameterised: doubly, or with the total derivative.

    .. math:: K^{-1} \\sum_k (F' - F'')(\\log w_k) \\, P_k \\quad \\text{or} \\quad
              K^{-1} \\sum_k F'(\\log w_k) (P_k - h_k), \\qquad \\theta: K^{-1} \\sum_k F'(\\log w_k) \\, t_k

    ``divergence``, of q and p: ``kl`` F = t; ``hellinger`` 2 e^(t/2) - 2; ``chi-square`` 1 - e^-t, the chi-square of q
    from p; ``jensen-shannon`` (log(1 + e^t) + e^t log(1 + e^-t))/2 - log 2; ``skew-kl`` log(1 + e^t) - log 2, KL of q from
    (p + q)/2. The doubly reparameterised form is zero in every draw where q is the posterior.

    Arguments:
        num_samples: K, averaged over.
        divergence: by name.
        doubly: whether phi's score is reparameterised too.

    Warning:
        The path derivative with F' alone, sticking the landing's recipe, is biased unless F is linear. log w is not
        normalised: where log p(x) is far below zero, Hellinger's weights vanish and chi-square's overflow.

    References:
        Wan, Li & Hovakimyan (2020).

    Example:
        >>> FDivergence(divergence="skew-kl").weights(torch.tensor([0.0]))
        Weights(path=tensor([0.2500]), score=None, model=tensor([0.5000]))
    """

    doubly: bool = True

    name = "f-divergence"
    needs = frozenset({"reparameterizable"})

    def weights(self, log_w: Tensor) -> Weights:
        slope = self.function.slope(log_w) / self.num_samples
        if self.doubly:
            return Weights(path=self.function.doubly(log_w) / self.num_samples, score=None, model=slope)
        return TotalDerivative.of(slope, model=slope)


@dataclass(frozen=True)
class FDivergenceScore(FDivergenceEstimator):
    """Any f-divergence by score functions, with the mean of the other samples as baseline.

    .. math:: K^{-1} \\sum_k (s_k - \\overline{s}_{-k}) \\, h_k, \\qquad s_k = (F - F')(\\log w_k)

    No baseline at K = 1. ``divergence`` as in ``f-divergence``.

    Warning:
        The -F' comes from log q inside w. It is a constant, and may be left out, for F = t alone.

    References:
        Wan, Li & Hovakimyan (2020); Ranganath, Gerrish & Blei (2014).

    Example:
        >>> FDivergenceScore(num_samples=2, divergence="kl").weights(torch.tensor([1.0, 3.0])).score
        tensor([-1.,  1.])
    """

    name = "f-divergence-score"
    citations = ("wan2020", "ranganath2014")

    def weights(self, log_w: Tensor) -> Weights:
        K, slope = self.num_samples, self.function.slope(log_w)
        signal = self.function.value(log_w) - slope
        if K > 1:
            signal = (signal - signal.mean(0)) * (K / (K - 1))
        return Weights(path=None, score=signal / K, model=slope / K)


@dataclass(frozen=True)
class TailAdaptive(Estimator):
    """Tail-adaptive f-divergence: each path derivative weighted by a power of its importance weight's rank.

    .. math:: \\sum_k \\tilde\\gamma_k P_k, \\qquad \\tilde\\gamma_k \\propto \\bar F(w_k)^{\\beta}, \\quad
              \\bar F(w_k) = K^{-1} \\, \\#\\{j : w_j \\ge w_k\\}

    The greatest weight gets rank 1, so with beta = -1 weights proportional to 1 / rank: heavy-tailed w do no harm. theta
    takes the importance-weighted bound's gradient.

    Arguments:
        num_samples: K.
        beta: the power; -1 is the published one, 0 gives sticking the landing.

    Warning:
        phi follows no objective: the divergence changes with every draw, and for each fixed one the estimate is biased. Its
        weights multiply path derivatives: with the total derivative it is another direction.

    References:
        Wang, Liu & Liu (2018).

    Example:
        >>> TailAdaptive(num_samples=3).weights(torch.tensor([0.0, 5.0, 1.0])).path
        tensor([0.1818, 0.5455, 0.2727])
        >>> TailAdaptive(num_samples=3).targets["phi"] is None
        True
    """

    beta: float = -1.0

    name = "tail-adaptive"
    family = "divergences"
    citations = ("wang2018",)
    needs = frozenset({"reparameterizable"})
    snr_slopes = {"theta": 0.5}
    snr_tail_ratios = {"theta": 0.5}

    @property
    def targets(self) -> dict[str, Target | None]:
        return {"theta": Target("iwae", self.num_samples), "phi": None}

    def value(self, log_w: Tensor) -> Tensor:
        return log_w.logsumexp(0) - math.log(self.num_samples)

    def weights(self, log_w: Tensor) -> Weights:
        rank = (log_w[None] >= log_w[:, None]).sum(1).to(log_w.dtype)
        return Weights(path=(self.beta * rank.log()).softmax(0), score=None, model=log_w.softmax(0))
