"""Gradients of the importance-weighted bound L_K = E log (1/K) sum_k w_k.

Notation: w~ = softmax(log w) along K; P_k, h_k, t_k as in :mod:`estimators.contract`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .contract import Estimator, Refusal, Target, TotalDerivative, Weights


@dataclass(frozen=True)
class ImportanceWeighted(Estimator):
    """Abstract: both blocks are unbiased for L_K; the value is log mean w."""

    family = "multi-sample"
    snr_tail_ratios = {"theta": 0.5, "phi": 0.5}
    needs = frozenset({"reparameterizable"})

    @property
    def targets(self) -> dict[str, Target | None]:
        target = Target("iwae", self.num_samples)
        return {"theta": target, "phi": target}

    def value(self, log_w: Tensor) -> Tensor:
        return log_w.logsumexp(0) - math.log(self.num_samples)


@dataclass(frozen=True)
class IWAE(ImportanceWeighted):
    """Importance-weighted autoencoder, reparameterised (total derivative).

    .. math:: \\sum_k \\tilde w_k (P_k - h_k)

    Warning:
        Its phi-gradient drowns in noise as K grows: the signal-to-noise ratio falls as K^(-1/2).

    References:
        Burda, Grosse & Salakhutdinov (2016); Rainforth et al. (2018) for the signal-to-noise ratio.

    Example:
        >>> IWAE(num_samples=2).weights(torch.tensor([0.0, 0.0])).score
        tensor([-0.5000, -0.5000])
    """

    name = "iwae"
    citations = ("burda2016", "rainforth2018")
    snr_slopes = {"theta": 0.5, "phi": -0.5}

    def weights(self, log_w: Tensor) -> Weights:
        w = log_w.softmax(0)
        return TotalDerivative.of(w, model=w)


@dataclass(frozen=True)
class IWAEStickingTheLanding(ImportanceWeighted):
    """IWAE with the score term left out of the phi-gradient.

    .. math:: \\sum_k \\tilde w_k P_k

    Warning:
        For K > 1 biased for L_K: its expectation is the gradient of L_K plus the wake-phi direction sum_k w~_k h_k.

    References:
        Roeder, Wu & Duvenaud (2017); Tucker et al. (2019) and Finke & Thiery (2019) for the bias.

    Example:
        >>> str(IWAEStickingTheLanding(num_samples=2).targets["phi"]), IWAEStickingTheLanding(num_samples=2).targets["phi"].unbiased
        ('iwae-2', False)
    """

    name = "iwae-stl"
    citations = ("roeder2017", "tucker2019", "finke2019")
    snr_slopes = {"theta": 0.5, "phi": 0.5}

    @property
    def targets(self) -> dict[str, Target | None]:
        K = self.num_samples
        return {"theta": Target("iwae", K), "phi": Target("iwae", K, unbiased=K == 1)}

    def weights(self, log_w: Tensor) -> Weights:
        w = log_w.softmax(0)
        return Weights(path=w, score=None, model=w)


@dataclass(frozen=True)
class DReG(ImportanceWeighted):
    """Doubly reparameterised gradient.

    .. math:: \\sum_k \\tilde w_k^2 P_k \\quad (\\phi), \\qquad \\sum_k \\tilde w_k t_k \\quad (\\theta)

    Warning:
        theta takes w~, not its square. phi may enter through q alone; with several stochastic layers the held
        density of a deeper one must still move with the shallower z (see :class:`Hierarchical`). The sqrt(K) growth of the
        signal-to-noise ratio needs a fourth moment of w: for Gaussians, rho > 3/4.

    References:
        Tucker, Lawson, Gu & Maddison (2019).

    Example:
        >>> DReG(num_samples=2).weights(torch.tensor([0.0, 0.0])).path
        tensor([0.2500, 0.2500])
    """

    name = "dreg"
    citations = ("tucker2019",)
    snr_slopes = {"theta": 0.5, "phi": 0.5}
    snr_tail_ratios = {"theta": 0.5, "phi": 0.75}

    def weights(self, log_w: Tensor) -> Weights:
        w = log_w.softmax(0)
        return Weights(path=w.square(), score=None, model=w)


@dataclass(frozen=True)
class _Grouped(ImportanceWeighted):
    """Abstract: K samples in ``groups`` groups of equal size, each with a bound of its own."""

    num_samples: int = 2
    groups: int = 2

    min_num_samples = 2
    citations = ("rainforth2018",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups < 1 or self.num_samples % self.groups:
            raise Refusal(
                f"{self.name} needs num_samples to be a multiple of groups, not {self.num_samples} of {self.groups}"
            )

    def grouped(self, log_w: Tensor) -> Tensor:
        """Log-weights as ``(groups, K / groups, *batch)``."""
        return log_w.reshape(self.groups, -1, *log_w.shape[1:])

    def group_weights(self, log_w: Tensor) -> Tensor:
        """Coefficients ``(K, *batch)`` of the mean over groups of their log mean weights."""
        return (self.grouped(log_w).softmax(1) / self.groups).reshape(log_w.shape)


@dataclass(frozen=True)
class MIWAE(_Grouped):
    """Mean of several importance-weighted bounds.

    .. math:: M^{-1} \\sum_{m=1}^M \\hat L_{K/M}^{(m)}, \\qquad M = \\mathrm{groups}

    Each group's total derivative; unbiased for the bound of K/M samples.

    References:
        Rainforth et al. (2018), section 4.

    Example:
        >>> str(MIWAE(num_samples=8, groups=4).targets["phi"]), MIWAE(num_samples=8, groups=4).targets["phi"].unbiased
        ('iwae-2', True)
    """

    name = "miwae"

    @property
    def targets(self) -> dict[str, Target | None]:
        target = Target("iwae", self.num_samples // self.groups)
        return {"theta": target, "phi": target}

    def value(self, log_w: Tensor) -> Tensor:
        return (self.grouped(log_w).logsumexp(1) - math.log(self.num_samples // self.groups)).mean(0)

    def weights(self, log_w: Tensor) -> Weights:
        w = self.group_weights(log_w)
        return TotalDerivative.of(w, model=w)


@dataclass(frozen=True)
class PIWAE(_Grouped):
    """Partially importance-weighted: theta by the bound of all K samples, phi by the mean of the groups' bounds.

    .. math:: \\theta: \\hat L_K, \\qquad \\phi: M^{-1} \\sum_{m=1}^M \\hat L_{K/M}^{(m)}

    So theta has the tighter bound while phi keeps its signal.

    References:
        Rainforth et al. (2018), section 4.

    Example:
        >>> {block: str(target) for block, target in PIWAE(num_samples=8, groups=4).targets.items()}
        {'theta': 'iwae-8', 'phi': 'iwae-2'}
    """

    name = "piwae"

    @property
    def targets(self) -> dict[str, Target | None]:
        K = self.num_samples
        return {"theta": Target("iwae", K), "phi": Target("iwae", K // self.groups)}

    def weights(self, log_w: Tensor) -> Weights:
        return TotalDerivative.of(self.group_weights(log_w), model=log_w.softmax(0))
