"""Estimators that remove the bias of L_K for log p(x): the jackknife in part, randomised truncation in the limit.

All are linear combinations of log-mean-weights over subsets or prefixes of the samples, hence weights rules: the gradient
of log mean w over a subset S is sum over S of its own softmax times the gradient of log w_k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .contract import Draw, Estimator, Guide, Refusal, Target, TotalDerivative, Weights
from .subsets import without_any

MOST_SUBSETS = 20_000
SUMO_KNEE, SUMO_DECAY = 80, 0.9
"""Luo et al.: P(N >= k) = 1/k up to k = 80, geometric with ratio 0.9 beyond."""
GEOMETRIC = 0.8
"""P(N >= k) = 0.8^(k - 1), five increments on average as the published tail has."""
TAILS = ("published", "reciprocal", "geometric")
LONGEST = 512
"""Of the reciprocal tail, whose expected length is infinite: it is cut here unless ``cap`` cuts it before."""


@dataclass(frozen=True)
class Jackknifed(Estimator):
    """Abstract: the jackknifed bound of ``order`` m from all subsets of K, K - 1, ..., K - m samples."""

    num_samples: int = 2
    order: int = 1

    family = "debiasing"
    needs = frozenset({"reparameterizable"})
    min_num_samples = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        K, m = self.num_samples, self.order
        if m < 1:
            raise Refusal(f"{self.name} needs order >= 1, not {m}")
        if m >= K or math.comb(K, m) > MOST_SUBSETS:
            raise Refusal(
                f"{self.name} of order {m} needs num_samples > {m} with at most {MOST_SUBSETS} subsets, not {K}"
            )

    @property
    def bound(self) -> Target:
        """What the value and its gradient are unbiased for."""
        return Target("jackknife", self.num_samples, setting=self.order)

    def coefficients(self) -> list[float]:
        """a_0 ... a_m."""
        K, m = self.num_samples, self.order
        return [(-1) ** j * (K - j) ** m / (math.factorial(m - j) * math.factorial(j)) for j in range(m + 1)]

    def value(self, log_w: Tensor) -> Tensor:
        total = torch.zeros_like(log_w[0])
        for j, coefficient in enumerate(self.coefficients()):
            bounds = without_any(log_w, j).logsumexp(1) - math.log(self.num_samples - j)
            total = total + coefficient * bounds.mean(0)
        return total

    def subset_weights(self, log_w: Tensor, power: int = 1) -> Tensor:
        """sum_j a_j times the mean over subsets of their softmaxes, each raised to ``power`` first; ``(K, *batch)``."""
        w = torch.zeros_like(log_w)
        for j, coefficient in enumerate(self.coefficients()):
            w = w + coefficient * without_any(log_w, j).softmax(1).pow(power).mean(0)
        return w


@dataclass(frozen=True)
class Jackknife(Jackknifed):
    """Jackknife variational inference of any order.

    .. math:: \\sum_{j=0}^{m} a_j \\, \\overline{\\hat L_{K-j}}, \\qquad a_j = \\frac{(-1)^j (K-j)^m}{(m-j)! \\, j!},
              \\qquad \\hat L_S = \\log |S|^{-1} \\sum_{k \\in S} w_k

    with the mean over all subsets of K - j samples; m = 1 gives K L_K - (K-1) L_(K-1). Total derivative.

    Arguments:
        num_samples: K > order.
        order: m, at least 1. All subsets are formed, so K choose m must not exceed 20,000.

    Warning:
        Not a bound. Its bias for log p(x) is O(K^-(m+1)) where L_K's is O(K^-1), at the price of more variance, and of
        cancellation: coefficients grow as K^m / m!, so single precision loses the digits that orders above 1 are after.

    References:
        Nowozin (2018).

    Example:
        >>> Jackknife(num_samples=2).value(torch.tensor([0.0, 0.0]))
        tensor(0.)
        >>> Jackknife(num_samples=4, order=2).coefficients()
        [8.0, -9.0, 2.0]
    """

    name = "jackknife"
    citations = ("nowozin2018",)
    version = "3"
    snr_slopes = {"theta": 0.5}
    snr_tail_ratios = {"theta": 0.5}

    @property
    def targets(self) -> dict[str, Target | None]:
        # log p(x) does not depend on phi; the phi-gradient is that of the jackknifed bound itself.
        return {"theta": Target("log_marginal", unbiased=False), "phi": self.bound}

    def weights(self, log_w: Tensor) -> Weights:
        w = self.subset_weights(log_w)
        return TotalDerivative.of(w, model=w)


@dataclass(frozen=True)
class JackknifeDReG(Jackknifed):
    """Jackknifed bound with its phi-gradient doubly reparameterised (JK-DReG).

    .. math:: \\sum_{j=0}^{m} a_j \\, \\overline{\\sum_{k \\in S} (\\tilde w_k^S)^2 P_k} \\quad (\\phi), \\qquad
              \\sum_{j=0}^{m} a_j \\, \\overline{\\sum_{k \\in S} \\tilde w_k^S \\, t_k} \\quad (\\theta)

    with the means over all subsets S of K - j samples, each with a softmax of its own, and a_j as in ``jackknife``; m = 1
    gives K DReG_K - (K - 1) mean DReG_(K-1). Judged by the jackknifed bound itself, in both blocks.

    Arguments:
        num_samples: K > order.
        order: m, at least 1; as in ``jackknife``.

    Warning:
        Each subset's weights are squared before they are combined; the square of the combination is another thing.

    References:
        Nowozin (2018); Tucker, Lawson, Gu & Maddison (2019).

    Example:
        >>> JackknifeDReG(num_samples=2).weights(torch.tensor([0.0, 0.0])).path
        tensor([0., 0.])
        >>> str(JackknifeDReG(num_samples=4).targets["phi"])
        'jackknife-4(1)'
    """

    name = "jackknife-dreg"
    citations = ("nowozin2018", "tucker2019")

    @property
    def targets(self) -> dict[str, Target | None]:
        return {"theta": self.bound, "phi": self.bound}

    def weights(self, log_w: Tensor) -> Weights:
        return Weights(path=self.subset_weights(log_w, power=2), score=None, model=self.subset_weights(log_w))


@dataclass(frozen=True)
class SUMO(Estimator):
    """Stochastically unbiased marginalisation objective: a Russian roulette over the increments of log mean w.

    .. math:: S = \\hat L_m + \\sum_{j=1}^{N} \\frac{\\hat L_{m+j} - \\hat L_{m+j-1}}{P(N \\ge j)}

    over prefixes of one set of m + N samples, m = ``num_samples``. theta ascends S; phi, which log p(x) does not depend on,
    ascends -S^2. ``tail`` says what P(N >= j) is:

    - ``published``: 1/j to j = 80, then geometric with ratio 0.9, so E[N] = 5.08.
    - ``reciprocal``: 1/j throughout. The expected cost is infinite, so it has a cap, and 512 without one of its own.
    - ``geometric``: 0.8^(j-1), E[N] = 5, with which the variance of the sum explodes sooner still.

    Arguments:
        num_samples: m, the terms that are always computed.
        cap: hard upper bound M on N. With it the estimate is unbiased for L_(m+M) and its variance exists; 0 means none.
        tail: see above.

    Warning:
        Without a cap the variance does not exist (nor, with the published tail, does E|S|): no estimate of this kind has both
        finite variance and finite cost, since k^2 E[Delta_k^2] tends to a constant. Sample variances of it are meaningless.

    References:
        Luo et al. (2020); Shi & Cornish (2021).

    Example:
        >>> [round(SUMO().survival(torch.tensor(k)).item(), 4) for k in (1, 2, 80, 81)]
        [1.0, 0.5, 0.0125, 0.0112]
    """

    cap: int = 0
    tail: str = "published"

    name = "sumo"
    family = "debiasing"
    citations = ("luo2020", "shi2021")
    random_cost = True
    needs = frozenset({"reparameterizable"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cap < 0:
            raise Refusal(f"sumo needs cap >= 0 (0: no cap), not {self.cap}")
        if self.tail not in TAILS:
            raise Refusal(f"sumo takes tail={', '.join(TAILS)}, not {self.tail!r}")

    @property
    def last(self) -> int:
        """The most that N can be; 0 where nothing but chance ends it."""
        return self.cap or (LONGEST if self.tail == "reciprocal" else 0)

    @property
    def targets(self) -> dict[str, Target | None]:
        theta = Target("iwae", self.num_samples + self.last) if self.last else Target("log_marginal")
        return {"theta": theta, "phi": None}

    @property
    def variance_exists(self) -> bool:
        return self.last > 0

    def survival(self, k: Tensor) -> Tensor:
        """P(N >= k) for k >= 1, float64; zero beyond the cap."""
        k = k.double()
        tail = {
            "published": lambda: torch.where(k < SUMO_KNEE, 1 / k, SUMO_DECAY ** (k - SUMO_KNEE) / SUMO_KNEE),
            "reciprocal": lambda: 1 / k,
            "geometric": lambda: GEOMETRIC ** (k - 1),
        }[self.tail]()
        return torch.where(k > self.last, 0.0, tail) if self.last else tail

    def lengths(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` draws of N, by inversion of the survival function."""
        uniform = torch.rand(count, generator=generator, dtype=torch.float64, device=generator.device)
        # A double is never below 2^-53, which the uncapped tails reach near k = 390 and 170: the table is complete.
        table = self.survival(torch.arange(1, max(self.last, 512) + 1, device=uniform.device))
        return len(table) - torch.searchsorted(table.flip(0), uniform, right=True)

    def draws(self, guide: Guide, replicates: int, generator: torch.Generator) -> list[Draw]:
        lengths = self.lengths(replicates, generator)
        groups = []
        for length in torch.unique(lengths).tolist():
            rows = (lengths == length).nonzero()[:, 0]
            groups.append(Draw(rows.cpu(), guide.noise((len(rows), self.num_samples + length), generator)))
        return groups

    def _prefixes(self, log_w: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficient of each prefix's log mean weight ``(K,)``, and log of each prefix's sum of weights ``(K, *batch)``."""
        K, m = log_w.shape[0], self.num_samples
        inverse = torch.zeros(K + 1, dtype=torch.float64, device=log_w.device)
        inverse[m:K] = 1 / self.survival(torch.arange(1, K - m + 1, device=log_w.device))
        coefficient = torch.zeros(K, dtype=torch.float64, device=log_w.device)
        coefficient[m - 1] = 1.0
        # The increment to prefix j + 1 enters with 1/P, and takes prefix j away with the same factor.
        coefficient[m:] += inverse[m:K]
        coefficient[m - 1 : K - 1] -= inverse[m:K]
        return coefficient.to(log_w.dtype), log_w.logcumsumexp(0)

    def value(self, log_w: Tensor) -> Tensor:
        coefficient, log_sums = self._prefixes(log_w)
        log_counts = torch.arange(1, log_w.shape[0] + 1, dtype=log_w.dtype, device=log_w.device).log()
        return torch.tensordot(coefficient, log_sums - _column(log_counts, log_sums), 1)

    def weights(self, log_w: Tensor) -> Weights:
        coefficient, log_sums = self._prefixes(log_w)
        K = log_w.shape[0]
        later = torch.ones(K, K, dtype=torch.bool, device=log_w.device).triu()  # [k, j]: prefix j holds sample k
        later = later.reshape(K, K, *(1,) * (log_w.ndim - 1))
        softmaxes = (log_w[:, None] - log_sums[None]).masked_fill(~later, -math.inf).exp()
        w = (softmaxes * _column(coefficient, log_sums)[None]).sum(1)
        ascent = -2 * self.value(log_w) * w
        return TotalDerivative.of(ascent, model=w)


def _column(vector: Tensor, like: Tensor) -> Tensor:
    """``(K,)`` as ``(K, 1, ...)`` to multiply ``(K, *batch)``."""
    return vector.reshape(-1, *(1,) * (like.ndim - 1))
