"""Pyro's losses of several samples, as estimators of this suite (:mod:`.pyro_loss`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from estimators import Refusal, Target

from ..problems.problem import Problem
from ..problems.pyro_problem import PyroProblem
from .pyro_loss import PyroLoss, differently_weighted, other_subsets, points_of, sites_of
from .renyi_claims import RenyiClaims

if TYPE_CHECKING:
    from pyro.infer import ELBO


@dataclass(frozen=True)
class PyroRenyiELBO(RenyiClaims, PyroLoss):
    """Pyro's `RenyiELBO`: on reparameterised guides the total derivative of the Rényi bound; alpha = 0 is L_K.

    .. math:: \\sum_k \\tilde w_k^{(\\alpha)} \\nabla \\log w(T_\\phi(\\epsilon_k)), \\qquad
              \\tilde w_k^{(\\alpha)} \\propto w_k^{1 - \\alpha}

    Arguments:
        num_samples: K.
        alpha: any number but 1.

    Warning:
        A site that is not reparameterised gets alpha / (1 - alpha) times its score, weighted as above: exactly zero at
        alpha = 0, without a warning, and otherwise the self-normalised gradient of the bound of infinitely many samples.
        Weights are per data point only where every site stands in one plate; else Pyro bounds the joint
        log p(x_1, ..., x_B) with one weight for all data points, another, looser bound.

    References:
        Li & Turner (2016); Burda, Grosse & Salakhutdinov (2016); Bingham et al. (2019).
    """

    name = "pyro-renyi-elbo"
    citations = ("bingham2019", "li2016", "burda2016")

    def objection(self, problem: Problem) -> str | None:
        return differently_weighted(problem)

    def loss(self, **particles: Any) -> ELBO:
        from pyro.infer import RenyiELBO

        return RenyiELBO(alpha=self.alpha, **particles)


@dataclass(frozen=True)
class _Joint(PyroLoss):
    """Abstract: Pyro sums log-weights over everything, so that there is one weight for all data points together."""

    min_num_samples = 2

    def objection(self, problem: Problem) -> str | None:
        if isinstance(problem, PyroProblem) and other_subsets(problem):
            return other_subsets(problem)
        points = points_of(problem)
        if points == 1:
            return None
        return f"Pyro weighs all {points} data points by one number here: what it bounds is their joint density"


@dataclass(frozen=True)
class PyroReweightedWakeSleep(_Joint):
    """Pyro's `ReweightedWakeSleep`, awake: self-normalised weights of the score and of the model's gradient.

    .. math:: \\sum_k \\tilde w_k h_k \\quad (\\phi), \\qquad \\sum_k \\tilde w_k t_k \\quad (\\theta)

    Warning:
        Weights are of all data points together, which is no weight for any of them; Pyro's own page says that minibatches
        are not supported. Problems of several data points are refused. phi is biased by order 1/K.

    References:
        Bornschein & Bengio (2015); Le et al. (2019); Bingham et al. (2019).
    """

    name = "pyro-reweighted-wake-sleep"
    family = "wake-sleep"
    counterpart = "reweighted-wake-sleep"
    citations = ("bingham2019", "bornschein2015", "le2019")
    snr_slopes = {"theta": 0.5, "phi": 0.5}
    snr_tail_ratios = {"theta": 0.5, "phi": 0.5}

    @property
    def targets(self) -> dict[str, Target | None]:
        return {"theta": Target("iwae", self.num_samples), "phi": Target("forward_kl", unbiased=False)}

    def particles(self, problem: Problem) -> dict[str, Any]:
        how = super().particles(problem)
        return how | {"vectorize_particles": how.get("vectorize_particles", False)}

    def read(self, returned: Any) -> float:
        return float(returned[0])

    def loss(self, **particles: Any) -> ELBO:
        from pyro.infer import ReweightedWakeSleep

        return ReweightedWakeSleep(insomnia=1.0, **particles)


@dataclass(frozen=True)
class PyroTraceTailAdaptiveELBO(_Joint):
    """Pyro's `TraceTailAdaptive_ELBO`: total derivatives weighted by powers of what it takes for the weights' ranks.

    .. math:: \\sum_k \\gamma_k \\nabla \\log w(T_\\phi(\\epsilon_k)) / (K \\sum_k \\gamma_k), \\qquad \\gamma_k = r_k^{\\beta}

    No objective of a fixed divergence, and no value.

    Arguments:
        num_samples: K.
        beta: the power, from -1 to below 0.

    Warning:
        Four departures from the paper. r_k is the sample in k-th place by weight, not the place of sample k, and the two
        permutations are each other's inverses. Places are counted upwards, so that for K = 2 the *lesser* weight gets the
        greater gamma. The derivative is total, where the paper's holds the density of q. And all of it is divided by K.

    References:
        Wang, Liu & Liu (2018); Bingham et al. (2019).
    """

    beta: float = -1.0

    name = "pyro-trace-tail-adaptive-elbo"
    family = "divergences"
    counterpart = "tail-adaptive"
    citations = ("bingham2019", "wang2018")
    needs = frozenset({"reparameterizable"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.beta < 0:
            raise Refusal(f"{self.label()}: Pyro takes beta from -1 to below 0, not {self.beta}")

    @property
    def targets(self) -> dict[str, Target | None]:
        return {"theta": None, "phi": None}

    def particles(self, problem: Problem) -> dict[str, Any]:
        return super().particles(problem) | {"vectorize_particles": True}  # it knows no other way

    def read(self, returned: Any) -> float:
        return math.nan  # Pyro's own answer is an infinity

    def loss(self, **particles: Any) -> ELBO:
        from pyro.infer import TraceTailAdaptive_ELBO

        return TraceTailAdaptive_ELBO(tail_adaptive_beta=self.beta, **particles)


@dataclass(frozen=True)
class PyroTraceTMCELBO(PyroLoss):
    """Pyro's `TraceTMC_ELBO` (Tensor Monte Carlo) with K draws of a guide's one site: L_K for each data point.

    .. math:: \\nabla \\log K^{-1} \\sum_k w_k

    Warning:
        A site that is not reparameterised has its score inside the logarithm, where it cancels that of log q: phi's
        gradient is exactly zero, without a warning. With several latent sites every draw of one is combined with every
        draw of the others, which is another bound: such problems are refused. One draw fails in Pyro itself.

    References:
        Aitchison (2019); Foerster et al. (2018); Bingham et al. (2019).
    """

    name = "pyro-trace-tmc-elbo"
    family = "multi-sample"
    counterpart = "iwae"
    citations = ("bingham2019", "aitchison2019", "foerster2018")
    snr_slopes = {"theta": 0.5, "phi": -0.5}
    min_num_samples = 2

    @property
    def targets(self) -> dict[str, Target | None]:
        target = Target("iwae", self.num_samples)
        return {"theta": target, "phi": target}

    def beside(self, problem: Problem) -> str:
        return self.counterpart if "reparameterizable" in problem.offers else "multi-sample-score"

    def objection(self, problem: Problem) -> str | None:
        sites = sites_of(problem)
        if len(sites) > 1:
            return (
                f"draws of the sites {', '.join(sites)} are combined with one another, which is another bound than L_K"
            )
        return differently_weighted(problem)

    def particles(self, problem: Problem) -> dict[str, Any]:
        return super().particles(problem) | {"num_particles": 1}

    def programs(self, model: Any, guide: Any) -> tuple[Any, Any]:
        from pyro.infer import config_enumerate

        return model, config_enumerate(guide, default="parallel", expand=False, num_samples=self.num_samples)

    def loss(self, **particles: Any) -> ELBO:
        from pyro.infer import TraceTMC_ELBO

        return TraceTMC_ELBO(**particles)
