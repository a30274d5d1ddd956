"""Sums over a few different states of a discrete latent: nothing is evaluated twice.

The latent, however many variables it has, is one variable whose S states the guide lists. Densities of q are computed for
all of them; log p(x, z) for the K chosen ones alone. What differs between the estimators is how the K are chosen and with
which weight each stands for the sum over all:

    sum_k  a_k f_k h_k  (phi)      sum_k  a_k t_k  (theta)      sum_k  a_k f_k  (value),        f_k = log w_k

with E sum_k a_k g(z_k) = E_q g(z) for every g, and in phi something in the place of f_k that has less variance.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vjp

from .contract import Block, Draw, Estimator, Gradient, Guide, LatentModel, Parameters, Refusal, Target

MOST_LISTED = 12
"""Samples of ``unordered-set``: all 2^K subsets of them are summed over."""


class Chosen(NamedTuple):
    """Which states are evaluated, and what the weights are made of.

    ``places``: ``(K, *batch)``, into the list of states; ``log_weight``: log a_k, the same shape; ``rest``: log of the
    probability of all states that were not chosen, ``(*batch)``.
    """

    places: Tensor
    log_weight: Tensor
    rest: Tensor


@dataclass(frozen=True)
class SubsetSum(Estimator):
    """Abstract: a weighted sum over K different states. No weights rule, since weights depend on more than log w."""

    num_samples: int = 2

    family = "subset"
    needs = frozenset({"enumerable"})
    min_num_samples = 2

    @property
    def targets(self) -> dict[str, Target | None]:
        return {"theta": Target("elbo"), "phi": Target("elbo")}

    @abstractmethod
    def own_noise(self, replicates: int, like: Tensor, generator: torch.Generator) -> Tensor:
        """Noise of ``replicates`` estimates; ``like`` is log q of every state, ``(S, *batch)``."""

    @abstractmethod
    def choose(self, log_q: Tensor, noise: Tensor) -> Chosen:
        """States and weights from log q of every state ``(S, *batch)`` and the noise of one estimate."""

    def signal(self, f: Tensor, log_q: Tensor, chosen: Chosen) -> Tensor:
        """What multiplies h_k: a_k f_k, and what has mean zero against it. All are ``(K, *batch)``."""
        return chosen.log_weight.exp() * f

    def draws(self, guide: Guide, replicates: int, generator: torch.Generator) -> list[Draw]:
        states = guide.states()
        probe = guide.transform(guide.noise((1,), torch.Generator(states.device)))
        log_q = _log_probs(guide, states, probe.shape[1 : probe.ndim - states.ndim + 1])
        return [Draw(torch.arange(replicates), self.own_noise(replicates, log_q, generator))]

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        theta, phi = parameters["theta"], parameters["phi"]
        guide = model.guide(phi).detach()
        states = guide.states()
        log_q_all = _log_probs(guide, states, noise.shape[1:])
        chosen = _every(log_q_all) if self.num_samples >= len(states) else self.choose(log_q_all, noise)
        z = states[chosen.places]
        log_q = log_q_all.gather(0, chosen.places)
        log_p, pull_back = vjp(lambda theta: model.log_joint(theta, z), theta)  # type: ignore[misc]
        f = log_p.detach() - log_q
        points = f[0].numel()
        weight = chosen.log_weight.exp()
        score = self.signal(f, log_q, chosen)
        (theta_gradient,) = pull_back(weight / points)

        def surrogate(phi: Block) -> Tensor:
            return (score * model.guide(phi).log_prob(z)).sum() / points

        return Gradient((weight * f).sum() / points, theta_gradient, grad(surrogate)(phi))


@dataclass(frozen=True)
class WithoutReplacement(SubsetSum):
    """Sampling without replacement with importance weights: Gumbel-top-k and its threshold.

    .. math:: \\sum_{z \\in B} \\frac{q(z)}{\\pi(z)} f(z) \\, \\nabla_\\phi \\log q(z), \\qquad
              \\pi(z) = 1 - \\exp(-e^{\\log q(z) - \\kappa})

    B are the K states of largest log q + Gumbel noise and kappa is the value of the (K+1)-th: given kappa, pi(z) is the
    probability that z is in. With ``baseline``, f(z) gives way to f(z) (1 - q(z) + q(z)/pi(z)) - sum_B q f / pi, the
    corrected mean. With K >= S, all states are summed over.

    Arguments:
        num_samples: K >= 2; with ``baseline`` K >= 4.
        baseline: subtract the corrected mean of the set.
        normalised: divide by the sum of the weights W = sum_B q/pi (and subtract the normalised mean, with ``baseline``).

    Warning:
        Unbiased as it stands; ``normalised`` is biased, though it is what libraries often give by default. The weights have
        tail index K + 1 and the baseline's products half of that: the variance does not exist for K = 1, nor with
        ``baseline`` for K < 4. The baseline does not remove a constant in f; ``unordered-set`` does.

    References:
        Vieira (2017); Kool, van Hoof & Welling (2019), Stochastic Beams; Kool, van Hoof & Welling (2020); Duffield, Lund &
        Thorup (2007) for the threshold.

    Example:
        >>> q = torch.tensor([0.5, 0.3, 0.2]).log()
        >>> chosen = WithoutReplacement(num_samples=2).choose(q, torch.tensor([0.0, 2.0, 0.0]))
        >>> chosen.places
        tensor([1, 0])
        >>> q.exp()[chosen.places] / chosen.log_weight.exp()  # 1 - exp(-0.3 / 0.2), 1 - exp(-0.5 / 0.2)
        tensor([0.7769, 0.9179])
    """

    baseline: bool = False
    normalised: bool = False

    name = "without-replacement"
    citations = ("vieira2017", "koolvanhoof2019", "kool2020", "duffield2007")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline and not self.normalised and self.num_samples < 4:
            raise Refusal(
                f"without-replacement with its baseline needs num_samples >= 4 to have a variance, not {self.num_samples}"
            )

    @property
    def targets(self) -> dict[str, Target | None]:
        target = Target("elbo", unbiased=not self.normalised)
        return {"theta": target, "phi": target}

    def own_noise(self, replicates: int, like: Tensor, generator: torch.Generator) -> Tensor:
        return _gumbel(replicates, like, generator)

    def choose(self, log_q: Tensor, noise: Tensor) -> Chosen:
        top, places = (log_q + noise).topk(self.num_samples + 1, dim=0)
        threshold, places = top[-1], places[:-1]
        log_in = log_q.gather(0, places)
        log_weight = log_in - (-torch.expm1(-(log_in - threshold).exp())).log()
        if self.normalised:
            log_weight = log_weight.log_softmax(0)
        return Chosen(places, log_weight, _rest(log_q, places))

    def signal(self, f: Tensor, log_q: Tensor, chosen: Chosen) -> Tensor:
        weight = chosen.log_weight.exp()
        if not self.baseline:
            return weight * f
        mean = (weight * f).sum(0)
        return weight * (f - mean if self.normalised else f * (1 - log_q.exp() + weight) - mean)


@dataclass(frozen=True)
class UnorderedSet(SubsetSum):
    """The unordered-set estimator: a sample without replacement, its order averaged out, with a built-in baseline.

    .. math:: \\sum_{z \\in B} q(z) R(B, z) \\Bigl( f(z) - \\sum_{y \\in B} q(y) R^{-z}(B, y) f(y) \\Bigr)
              \\nabla_\\phi \\log q(z), \\qquad
              R(B, z) = \\frac{P^{-z}(B \\setminus z)}{P(B)}, \\quad R^{-z}(B, y) = \\frac{P^{-zy}(B \\setminus zy)}{P^{-z}(B \\setminus z)}

    P(B) is the probability of drawing the set B without replacement, in any order, P^{-z} the same from all states but z,
    and R^{-z}(B, z) = 1. It is the mean of the single-sample estimate over all orders in which B could have been drawn. With
    K >= S, all states are summed over. Zero in every draw where f is constant.

    P obeys P(C) = sum_(z in C) q(z) P(C without z) / (q(C) + q(outside B)) as the probability that all of C come before
    anything outside of B; all terms are positive, so nothing cancels, in place of the published numerical integral.

    Arguments:
        num_samples: K, 2 to 12: the 2^K subsets of B are gone through, which costs no evaluation of the model.
        baseline: the built-in one.

    Warning:
        The baseline's own term, R^{-z}(B, z) = 1, belongs there: without it the estimate is biased.

    References:
        Kool, van Hoof & Welling (2020).

    Example:
        >>> q = torch.tensor([0.5, 0.3, 0.2]).log()
        >>> chosen = UnorderedSet(num_samples=2).choose(q, torch.tensor([0.0, 2.0, 0.0]))
        >>> chosen.log_weight.exp()  # P(second state first | this set), P(first state first | this set)
        tensor([0.4167, 0.5833])
    """

    baseline: bool = True

    name = "unordered-set"
    citations = ("kool2020",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_samples > MOST_LISTED:
            raise Refusal(
                f"unordered-set needs num_samples <= {MOST_LISTED}, not {self.num_samples}: it sums over 2^K subsets"
            )

    def own_noise(self, replicates: int, like: Tensor, generator: torch.Generator) -> Tensor:
        return _gumbel(replicates, like, generator)

    def choose(self, log_q: Tensor, noise: Tensor) -> Chosen:
        places = (log_q + noise).topk(self.num_samples, dim=0).indices
        log_in, rest = log_q.gather(0, places), _rest(log_q, places)
        one_out, all_in = log_orders(log_in, rest)[-2:]
        return Chosen(places, log_in + one_out.flip(0) - all_in, rest)

    def signal(self, f: Tensor, log_q: Tensor, chosen: Chosen) -> Tensor:
        weight = chosen.log_weight.exp()
        if not self.baseline:
            return weight * f
        K = len(f)
        two_out, one_out = log_orders(log_q, chosen.rest)[-3:-1]
        one_out = one_out.flip(0)
        pairs = torch.tensor(_pair_places(K), device=f.device)
        ratio = two_out.flip(0)[pairs] - one_out[:, None]  # (K, K, *batch): log R^{-z}(B, y)
        own = torch.eye(K, dtype=torch.bool, device=f.device).reshape(K, K, *(1,) * (f.ndim - 1))
        mean = ((log_q + ratio.masked_fill(own, 0.0)).exp() * f).sum(1)
        return weight * (f - mean)


@dataclass(frozen=True)
class RaoBlackwellised(SubsetSum):
    """The most probable states summed exactly, and samples of the rest (sum and sample).

    .. math:: \\sum_{z \\in C} q(z) (f(z) - b) \\nabla_\\phi \\log q(z)
              + \\frac{1 - q(C)}{m} \\sum_{i=1}^m (f(v_i) - b) \\nabla_\\phi \\log q(v_i), \\qquad
              v_i \\sim q(\\cdot \\mid z \\notin C)

    C are the K - m states of largest q. The baseline b is the mean of f over C: it depends on no sample. Never more variance
    than one plain sample with the same b, and little where q is concentrated. With K >= S, all states are summed over.

    Arguments:
        num_samples: K, evaluations in all.
        sampled: m, how many of them are drawn, with replacement; below K.
        baseline: subtract b; without it, b = 0, as published.

    Warning:
        The rest must be renormalised when it is drawn from, and weighted by its own probability: drawn from the whole of q
        it counts C twice.

    References:
        Liu, Regier, Tripuraneni, Jordan & McAuliffe (2019); Liang et al. (2018).

    Example:
        >>> q = torch.tensor([0.2, 0.5, 0.3]).log()
        >>> chosen = RaoBlackwellised(num_samples=2).choose(q, torch.tensor([0.7]))
        >>> chosen.places, chosen.log_weight.exp()  # the second summed; the first drawn, with the weight of both others
        (tensor([1, 0]), tensor([0.5000, 0.5000]))
    """

    sampled: int = 1
    baseline: bool = True

    name = "rao-blackwellised"
    citations = ("liu2019", "liang2018")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.sampled < self.num_samples:
            raise Refusal(
                f"rao-blackwellised needs sampled between 1 and K - 1, not {self.sampled} of {self.num_samples}"
            )

    def own_noise(self, replicates: int, like: Tensor, generator: torch.Generator) -> Tensor:
        size = (replicates, self.sampled, *like.shape[1:])
        return torch.rand(size, generator=generator, dtype=like.dtype, device=like.device)

    def choose(self, log_q: Tensor, noise: Tensor) -> Chosen:
        summed = self.num_samples - self.sampled
        ordered, places = log_q.sort(0, descending=True)
        log_rest = ordered[summed:].logsumexp(0)
        # Upper edges of all cells but the last: what rounding leaves above them belongs to the last.
        edges = (ordered[summed:] - log_rest).exp().cumsum(0)[:-1]
        drawn = (noise[:, None] >= edges).sum(1)
        weight = (log_rest - math.log(self.sampled)).expand(drawn.shape)
        places = torch.cat([places[:summed], places[summed:].gather(0, drawn)])
        return Chosen(places, torch.cat([ordered[:summed], weight]), log_rest)

    def signal(self, f: Tensor, log_q: Tensor, chosen: Chosen) -> Tensor:
        weight = chosen.log_weight.exp()
        if not self.baseline:
            return weight * f
        summed = slice(None, max(1, self.num_samples - self.sampled))
        return weight * (f - (log_q[summed].softmax(0) * f[summed]).sum(0))


def log_orders(log_q: Tensor, rest: Tensor) -> list[Tensor]:
    """log P(all of C are drawn before anything outside of B) for all subsets C of B, by their size.

    Drawing goes on without replacement among C and the states outside of B, whose probability is exp(rest). Subsets of one
    size in the order of :func:`itertools.combinations`.

    Arguments:
        log_q: log-probabilities of the K members of B, ``(K, *batch)``. rest: ``(*batch)``.

    Returns:
        tensors ``(K choose size, *batch)`` for size 0 ... K.

    Example:
        >>> [x.exp() for x in log_orders(torch.tensor([0.5, 0.3]).log(), torch.tensor(0.2).log())]
        [tensor([1.]), tensor([0.7143, 0.6000]), tensor([0.5143])]
    """
    levels = [torch.zeros_like(log_q[:1])]
    for size in range(1, len(log_q) + 1):
        members, below = (torch.tensor(table, device=log_q.device) for table in _lattice(len(log_q), size))
        inside = log_q[members]  # (subsets, size, *batch)
        either = torch.logaddexp(inside.logsumexp(1), rest)
        levels.append((inside + levels[-1][below]).logsumexp(1) - either)
    return levels


@cache
def _lattice(K: int, size: int) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """Subsets of that size, and for each member the place, among the subsets one smaller, of the subset without it."""
    # Plain numbers: a tensor made inside a functorch transform must not outlive it.
    place = {subset: i for i, subset in enumerate(itertools.combinations(range(K), size - 1))}
    subsets = list(itertools.combinations(range(K), size))
    without = [[place[subset[:i] + subset[i + 1 :]] for i in range(size)] for subset in subsets]
    return subsets, without


@cache
def _pair_places(K: int) -> list[list[int]]:
    """Place of {i, j} among all pairs; arbitrary where i = j."""
    place = {pair: i for i, pair in enumerate(itertools.combinations(range(K), 2))}
    return [[place.get((min(i, j), max(i, j)), 0) for j in range(K)] for i in range(K)]


def _every(log_q: Tensor) -> Chosen:
    """All states, each with its probability: nothing is left to chance."""
    places = torch.arange(len(log_q), device=log_q.device).reshape(-1, *(1,) * (log_q.ndim - 1)).expand(log_q.shape)
    return Chosen(places, log_q, torch.full_like(log_q[0], -math.inf))


def _rest(log_q: Tensor, places: Tensor) -> Tensor:
    """log of the probability of the states that are not at ``places``."""
    return log_q.scatter(0, places, -math.inf).logsumexp(0)


def _log_probs(guide: Guide, states: Tensor, batch: tuple[int, ...]) -> Tensor:
    """log q of every state, ``(S, *batch)``."""
    event = states.shape[1:]
    z = states.reshape(len(states), *(1,) * len(batch), *event).expand(len(states), *batch, *event)
    return guide.log_prob(z)


def _gumbel(replicates: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel numbers ``(replicates, S, *batch)``."""
    noise = torch.empty((replicates, *like.shape), dtype=like.dtype, device=like.device)
    return -noise.exponential_(generator=generator).log()
