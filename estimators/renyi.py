"""Gradients of the variational Renyi bound of K samples, (1 - alpha)^-1 E log (1/K) sum_k w_k^(1 - alpha).

alpha = 0 is L_K, alpha = 1 the ELBO. Notation: w~ = softmax((1 - alpha) log w) along K; P_k, h_k, t_k as in
:mod:`estimators.contract`. Whether the bound lies below log p(x) depends on alpha and on K: for alpha in [0, 1] always, for
alpha < 0 only while K is small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .contract import Estimator, Refusal, Target, TotalDerivative, Weights
from .subsets import logsumexp_of_others


@dataclass(frozen=True)
class RenyiBound(Estimator):
    """Abstract: both blocks are unbiased for the bound of order ``power`` = 1 - alpha from K samples."""

    family = "multi-sample"

    @property
    def power(self) -> float:
        """1 - alpha."""
        raise NotImplementedError

    @property
    def setting(self) -> float:
        """alpha, as the target says it."""
        return 1 - self.power

    @property
    def targets(self) -> dict[str, Target | None]:
        target = Target("renyi", self.num_samples, setting=self.setting)
        return {"theta": target, "phi": target}

    def value(self, log_w: Tensor) -> Tensor:
        if self.power == 0:
            return log_w.mean(0)
        return ((self.power * log_w).logsumexp(0) - math.log(self.num_samples)) / self.power

    def tempered(self, log_w: Tensor) -> Tensor:
        """w~, the derivative of the bound in each log-weight."""
        return (self.power * log_w).softmax(0)


@dataclass(frozen=True)
class _OfAlpha(RenyiBound):
    """Abstract: the order is given by alpha."""

    alpha: float = 0.5

    citations = ("li2016", "daudel2023")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.alpha):
            raise Refusal(f"{self.label()} needs a finite alpha, not {self.alpha}")

    @property
    def power(self) -> float:
        return 1 - self.alpha

    @property
    def setting(self) -> float:
        return self.alpha  # to the last digit, as 1 - (1 - alpha) is not


@dataclass(frozen=True)
class Renyi(_OfAlpha):
    """Variational Renyi bound (VR-IWAE), reparameterised with the total derivative.

    .. math:: \\sum_k \\tilde w_k (P_k - h_k), \\qquad \\tilde w_k \\propto w_k^{1 - \\alpha}

    Arguments:
        num_samples: K.
        alpha: any number; 0 gives the importance-weighted bound, 1 the ELBO, 1 - n the chi upper bound of order n.

    Warning:
        Unbiased for the bound of K samples, not for its limit. For alpha < 0 that limit lies above log p(x), yet the bound
        of few samples below it: a value below says nothing. Close to alpha = 1 (nearer than 1e-6) its value loses digits.

    References:
        Li & Turner (2016); Daudel, Benton, Shi & Doucet (2023).

    Example:
        >>> str(Renyi(num_samples=4, alpha=0.5).targets["phi"])
        'renyi-4(0.5)'
        >>> Renyi(num_samples=2, alpha=0.5).weights(torch.tensor([0.0, 2 * math.log(3.0)])).path
        tensor([0.2500, 0.7500])
    """

    name = "renyi"
    needs = frozenset({"reparameterizable"})

    def weights(self, log_w: Tensor) -> Weights:
        w = self.tempered(log_w)
        return TotalDerivative.of(w, model=w)


@dataclass(frozen=True)
class RenyiDReG(_OfAlpha):
    """Variational Renyi bound, doubly reparameterised.

    .. math:: \\sum_k (\\alpha \\tilde w_k + (1 - \\alpha) \\tilde w_k^2) P_k \\quad (\\phi), \\qquad
              \\sum_k \\tilde w_k t_k \\quad (\\theta)

    alpha = 0 is ``dreg``, alpha = 1 is ``sticking-the-landing``.

    Warning:
        theta takes w~ alone. phi may enter through q alone; one stochastic layer.

    References:
        Tucker et al. (2019) for alpha = 0; Daudel, Benton, Shi & Doucet (2023).

    Example:
        >>> RenyiDReG(num_samples=2, alpha=0.5).weights(torch.tensor([0.0, 0.0])).path
        tensor([0.3750, 0.3750])
    """

    name = "renyi-dreg"
    citations = ("tucker2019", "daudel2023")
    needs = frozenset({"reparameterizable"})

    def weights(self, log_w: Tensor) -> Weights:
        w = self.tempered(log_w)
        return Weights(path=self.alpha * w + self.power * w.square(), score=None, model=w)


@dataclass(frozen=True)
class RenyiScore(_OfAlpha):
    """Variational Renyi bound by score functions, each sample's baseline the bound of the others.

    .. math:: \\sum_k (\\hat R - \\hat R_{-k} - \\tilde w_k) \\, h_k, \\qquad
              \\hat R = (1 - \\alpha)^{-1} \\log K^{-1} \\sum_k w_k^{1 - \\alpha}

    Needs nothing of the guide but samples and densities. alpha = 0 is ``ovis`` with gamma = 0, up to a constant; alpha = 1
    the leave-one-out score function.

    Warning:
        The term -w~_k is part of the gradient: left out, as where the bound is differentiated with the weights held, what
        remains is biased, and at alpha = 0 it is no gradient of the bound at all.

    References:
        Li & Turner (2016) for the bound; Mnih & Rezende (2016) for its score-function form at alpha = 0.

    Example:
        >>> RenyiScore(num_samples=2, alpha=1.0).weights(torch.tensor([1.0, 3.0])).score
        tensor([-1.5000,  0.5000])
    """

    num_samples: int = 2

    name = "renyi-score"
    citations = ("li2016", "mnih2016")
    min_num_samples = 2

    def weights(self, log_w: Tensor) -> Weights:
        w = self.tempered(log_w)
        return Weights(path=None, score=self.value(log_w) - self._of_the_others(log_w) - w, model=w)

    def _of_the_others(self, log_w: Tensor) -> Tensor:
        """For each k the bound from all samples but the k-th, ``(K, *batch)``."""
        K = self.num_samples
        if self.power == 0:
            return (log_w.sum(0) - log_w) / (K - 1)
        return (logsumexp_of_others(self.power * log_w) - math.log(K - 1)) / self.power


@dataclass(frozen=True)
class ChiUpperBound(RenyiBound):
    """Chi upper bound (CUBO) of order n: the Renyi bound with alpha = 1 - n, which phi is to *minimise*.

    .. math:: \\hat U = n^{-1} \\log K^{-1} \\sum_k w_k^n, \\qquad
              \\nabla \\hat U = \\sum_k \\tilde w_k (P_k - h_k), \\quad \\tilde w_k \\propto w_k^n

    The estimate is the gradient of the bound itself, uphill as everywhere here: an optimiser of phi must go against it.

    Arguments:
        num_samples: K.
        order: n, above 1; 2 bounds by the chi-square divergence of the posterior from q.

    Warning:
        log p(x) lies below n^-1 log E w^n, the limit of many samples; by Jensen's inequality the bound of K samples is
        too low, and at K = 1 it is the ELBO. Moments of w^n must exist for the limit to (n = 2: rho > 1/2, and rho > 3/4
        for an error of order K^-1/2); near that, one weight in a million decides.

    References:
        Dieng, Tran, Ranganath, Paisley & Blei (2017).

    Example:
        >>> str(ChiUpperBound(num_samples=4).targets["phi"])
        'renyi-4(-1.0)'
        >>> ChiUpperBound(num_samples=2).value(torch.tensor([0.0, 0.0]))
        tensor(0.)
    """

    order: float = 2.0

    name = "chi-upper-bound"
    citations = ("dieng2017",)
    needs = frozenset({"reparameterizable"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 < self.order < math.inf:
            raise Refusal(f"{self.label()} needs a finite order above 1, not {self.order}")

    @property
    def power(self) -> float:
        return float(self.order)

    def weights(self, log_w: Tensor) -> Weights:
        w = self.tempered(log_w)
        return TotalDerivative.of(w, model=w)
