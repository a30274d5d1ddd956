"""Planted defects of the sums over chosen states: what people really get wrong about sampling without replacement."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from planting import EVERY_SEED, assert_found, assert_passes

from estimators import RaoBlackwellised, UnorderedSet, WithoutReplacement
from estimators.elbo import ElboEstimator
from estimators.subset_sampling import Chosen, _rest, log_orders

SPECS = ("categorical[dim=2,values=3,data_dim=2,seed=2]",)


@dataclass(frozen=True)
class Normalised(WithoutReplacement):
    """What Storchastic does by default: the normalised form, presented as unbiased."""

    normalised: bool = True
    targets = ElboEstimator.targets


@dataclass(frozen=True)
class NormalisedWithBaseline(Normalised):
    """The same with its baseline."""

    baseline: bool = True


@dataclass(frozen=True)
class WrongThreshold(WithoutReplacement):
    """The K-th value in place of the (K+1)-th: the last state in the set is its own threshold."""

    num_samples: int = 4

    def choose(self, log_q, noise):
        top, places = (log_q + noise).topk(self.num_samples, dim=0)
        log_in = log_q.gather(0, places)
        return Chosen(places, log_in - (-torch.expm1(-(log_in - top[-1]).exp())).log(), _rest(log_q, places))


@dataclass(frozen=True)
class LaterThreshold(WithoutReplacement):
    """The (K+2)-th value."""

    def choose(self, log_q, noise):
        top, places = (log_q + noise).topk(self.num_samples + 2, dim=0)
        places = places[: self.num_samples]
        log_in = log_q.gather(0, places)
        return Chosen(places, log_in - (-torch.expm1(-(log_in - top[-1]).exp())).log(), _rest(log_q, places))


@dataclass(frozen=True)
class InclusionAsWithReplacement(WithoutReplacement):
    """1 - (1 - q)^K, the probability of appearing among K independent samples."""

    def choose(self, log_q, noise):
        chosen = super().choose(log_q, noise)
        log_in = log_q.gather(0, chosen.places)
        return chosen._replace(log_weight=log_in - (1 - (1 - log_in.exp()) ** self.num_samples).log())


@dataclass(frozen=True)
class NoInclusionProbability(WithoutReplacement):
    """The part of the sum that was drawn, and no weight for being drawn."""

    def choose(self, log_q, noise):
        chosen = super().choose(log_q, noise)
        return chosen._replace(log_weight=log_q.gather(0, chosen.places))


@dataclass(frozen=True)
class AsIfWithReplacement(WithoutReplacement):
    """1/K for each, as for independent samples."""

    def choose(self, log_q, noise):
        chosen = super().choose(log_q, noise)
        return chosen._replace(log_weight=torch.full_like(chosen.log_weight, -math.log(self.num_samples)))


@dataclass(frozen=True)
class BaselineWithItself(WithoutReplacement):
    """The mean of the set is subtracted, each state's own term included, without the correction."""

    num_samples: int = 6

    def signal(self, f, log_q, chosen):
        weight = chosen.log_weight.exp()
        return weight * (f - (weight * f).sum(0))


@dataclass(frozen=True)
class HalfCorrected(WithoutReplacement):
    """q/pi corrected for, q not."""

    num_samples: int = 6

    def signal(self, f, log_q, chosen):
        weight = chosen.log_weight.exp()
        return weight * (f * (1 + weight) - (weight * f).sum(0))


@dataclass(frozen=True)
class NoRatio(UnorderedSet):
    """q normalised over the set in place of the leave-one-out ratio."""

    def choose(self, log_q, noise):
        chosen = super().choose(log_q, noise)
        return chosen._replace(log_weight=log_q.gather(0, chosen.places).log_softmax(0))


@dataclass(frozen=True)
class WholeDomain(UnorderedSet):
    """Set probabilities as if all of q were still outside."""

    def choose(self, log_q, noise):
        places = (log_q + noise).topk(self.num_samples, dim=0).indices
        log_in = log_q.gather(0, places)
        one_out, all_in = log_orders(log_in, torch.zeros_like(log_in[0]))[-2:]
        return Chosen(places, log_in + one_out.flip(0) - all_in, _rest(log_q, places))


@dataclass(frozen=True)
class RatiosNotTurned(UnorderedSet):
    """Each state gets the ratio of its mirror image in the list."""

    num_samples: int = 3

    def choose(self, log_q, noise):
        chosen = super().choose(log_q, noise)
        log_in = log_q.gather(0, chosen.places)
        return chosen._replace(log_weight=log_in + (chosen.log_weight - log_in).flip(0))


@dataclass(frozen=True)
class BaselineWithoutItself(UnorderedSet):
    """The built-in baseline without its own term: a habit that is right for leave-one-out, and wrong here."""

    num_samples: int = 3

    def signal(self, f, log_q, chosen):
        return super().signal(f, log_q, chosen) + chosen.log_weight.exp() * log_q.exp() * f


@dataclass(frozen=True)
class FirstOrderBaseline(UnorderedSet):
    """The set's own mean as baseline: first-order ratios where second-order ones belong."""

    num_samples: int = 3

    def signal(self, f, log_q, chosen):
        weight = chosen.log_weight.exp()
        return weight * (f - (weight * f).sum(0))


@dataclass(frozen=True)
class RestWithoutItsWeight(RaoBlackwellised):
    """The sample of the rest counts as much as if it were one of all."""

    def choose(self, log_q, noise):
        chosen = super().choose(log_q, noise)
        summed = self.num_samples - self.sampled
        return chosen._replace(
            log_weight=chosen.log_weight.clone().index_fill(0, torch.arange(summed, len(chosen.places)), 0.0)
        )


@dataclass(frozen=True)
class RestNotRenormalised(RaoBlackwellised):
    """Inversion on the rest's own probabilities, which do not reach one: what is left over goes to the last."""

    def choose(self, log_q, noise):
        chosen = super().choose(log_q, noise)
        ordered, places = log_q.sort(0, descending=True)
        summed = self.num_samples - self.sampled
        drawn = (noise[:, None] >= ordered[summed:].exp().cumsum(0)[:-1]).sum(1)
        return chosen._replace(places=torch.cat([places[:summed], places[summed:].gather(0, drawn)]))


@dataclass(frozen=True)
class DrawnFromAll(RaoBlackwellised):
    """The sample is drawn from all of q: the most probable states count twice."""

    def choose(self, log_q, noise):
        chosen = super().choose(log_q, noise)
        ordered, places = log_q.sort(0, descending=True)
        drawn = (noise[:, None] >= ordered.exp().cumsum(0)[:-1]).sum(1)
        return chosen._replace(places=torch.cat([places[: self.num_samples - self.sampled], places.gather(0, drawn)]))


@dataclass(frozen=True)
class NotAveraged(RaoBlackwellised):
    """Two samples of the rest, summed."""

    num_samples: int = 3
    sampled: int = 2

    def choose(self, log_q, noise):
        chosen = super().choose(log_q, noise)
        more = torch.tensor([0.0, math.log(2), math.log(2)], dtype=log_q.dtype)
        return chosen._replace(log_weight=chosen.log_weight + more.reshape(-1, *(1,) * (log_q.ndim - 1)))


@dataclass(frozen=True)
class BaselineWithTheSample(RaoBlackwellised):
    """The weighted mean of everything that was evaluated as baseline, the sample included."""

    def signal(self, f, log_q, chosen):
        weight = chosen.log_weight.exp()
        return weight * (f - (weight * f).sum(0))


def five_per_cent_too_much(kind):
    @dataclass(frozen=True)
    class Scaled(kind):
        """A factor 1.05 in phi."""

        def signal(self, f, log_q, chosen):
            return 1.05 * super().signal(f, log_q, chosen)

    return Scaled


MUTANTS = [
    Normalised, NormalisedWithBaseline, WrongThreshold, LaterThreshold, InclusionAsWithReplacement, NoInclusionProbability,
    AsIfWithReplacement, BaselineWithItself, HalfCorrected, NoRatio, WholeDomain, RatiosNotTurned, BaselineWithoutItself,
    FirstOrderBaseline, RestWithoutItsWeight, RestNotRenormalised, DrawnFromAll, NotAveraged, BaselineWithTheSample,
    *(five_per_cent_too_much(kind) for kind in (WithoutReplacement, UnorderedSet, RaoBlackwellised)),
]  # fmt: skip


@dataclass(frozen=True)
class ConstantSubtracted(WithoutReplacement):
    """A constant baseline: the gradients of all q sum to zero."""

    def signal(self, f, log_q, chosen):
        return chosen.log_weight.exp() * (f + 2.0)


@dataclass(frozen=True)
class AnyStatesSummed(RaoBlackwellised):
    """The first states in place of the most probable: another variance, the same mean."""

    def choose(self, log_q, noise):
        summed = self.num_samples - self.sampled
        rest = log_q[summed:].logsumexp(0)
        drawn = (noise[:, None] >= (log_q[summed:] - rest).exp().cumsum(0)[:-1]).sum(1) + summed
        first = torch.arange(summed).reshape(-1, *(1,) * (log_q.ndim - 1)).expand(summed, *log_q.shape[1:])
        weight = (rest - math.log(self.sampled)).expand(drawn.shape)
        return Chosen(torch.cat([first, drawn]), torch.cat([log_q[:summed], weight]), rest)


@dataclass(frozen=True)
class SetsByInclusionAndExclusion(UnorderedSet):
    """P as an alternating sum: the same numbers, but for what cancels."""

    def choose(self, log_q, noise):
        chosen = super().choose(log_q, noise)
        q, out = log_q.gather(0, chosen.places).exp(), chosen.rest.exp()
        both = 1 - out / (out + q[0]) - out / (out + q[1]) + out / (out + q[0] + q[1])
        alone = q.flip(0) / (out + q.flip(0))
        return chosen._replace(log_weight=(q * alone / both).log())


HARMLESS = [ConstantSubtracted, AnyStatesSummed, SetsByInclusionAndExclusion]


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("kind", MUTANTS, ids=lambda kind: (kind.__doc__ or "").split(":")[0].rstrip("."))
def test_a_planted_defect_is_found(kind, seed):
    """Power: each bias is at least the test's effect there, so a miss has probability < 1 %."""
    assert_found(kind(), seed, SPECS)


@pytest.mark.parametrize("seed", EVERY_SEED)
@pytest.mark.parametrize("kind", HARMLESS, ids=lambda kind: kind.__name__)
def test_a_harmless_edit_passes(kind, seed):
    """False alarms: 1e-9 a check."""
    assert_passes(kind(), seed, SPECS)
