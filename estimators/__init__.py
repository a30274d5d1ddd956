"""Monte Carlo gradient estimators: rules that turn log-weights into weights.

Pure mathematics on torch alone: no files, no printing, no global random state.
"""

from __future__ import annotations

import difflib

from .contract import (
    BLOCKS,
    NEEDS,
    Block,
    Draw,
    Estimator,
    Gradient,
    Guide,
    LatentModel,
    Parameters,
    Refusal,
    Target,
    TotalDerivative,
    Weights,
)
from .debiasing import SUMO, Jackknife
from .discrete_guides import Bernoulli, Categorical
from .elbo import (
    LeaveOneOut,
    Reparameterization,
    ReparameterizationAnalyticKL,
    ScoreFunction,
    StickingTheLanding,
)
from .gaussian import BonnetPrice
from .guides import DiagonalGaussian, standard_log_prob
from .multilevel import MultilevelRussianRoulette, MultilevelSingleSample
from .multisample import IWAE, MIWAE, PIWAE, DReG, IWAEStickingTheLanding
from .multisample_score import OVIS, VIMCO, MultiSampleScore
from .wake_sleep import ReweightedWakeSleep, ReweightedWakeSleepDReG

REGISTRY: dict[str, type[Estimator]] = {
    cls.name: cls
    for cls in (
        ScoreFunction,
        LeaveOneOut,
        Reparameterization,
        ReparameterizationAnalyticKL,
        StickingTheLanding,
        BonnetPrice,
        IWAE,
        IWAEStickingTheLanding,
        DReG,
        MIWAE,
        PIWAE,
        MultiSampleScore,
        VIMCO,
        OVIS,
        Jackknife,
        SUMO,
        MultilevelRussianRoulette,
        MultilevelSingleSample,
        ReweightedWakeSleep,
        ReweightedWakeSleepDReG,
    )
}


def names() -> list[str]:
    """Registered names, in the order of the families."""
    return list(REGISTRY)


def get(name: str, **settings: int | float) -> Estimator:
    """The estimator of that name.

    Raises:
        KeyError: for an unknown name; the message gives the nearest ones.
        Refusal: for settings that the estimator does not allow.

    Example:
        >>> get("iwae", num_samples=5)
        IWAE(num_samples=5)
    """
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=3, cutoff=0.4) or names()
        raise KeyError(f"no estimator {name!r}; nearest: {', '.join(near)}")
    return REGISTRY[name](**settings)  # type: ignore[arg-type]


__all__ = [
    "BLOCKS",
    "IWAE",
    "MIWAE",
    "NEEDS",
    "OVIS",
    "PIWAE",
    "REGISTRY",
    "SUMO",
    "VIMCO",
    "Bernoulli",
    "Block",
    "BonnetPrice",
    "Categorical",
    "DReG",
    "DiagonalGaussian",
    "Draw",
    "Estimator",
    "Gradient",
    "Guide",
    "IWAEStickingTheLanding",
    "Jackknife",
    "LatentModel",
    "LeaveOneOut",
    "MultiSampleScore",
    "MultilevelRussianRoulette",
    "MultilevelSingleSample",
    "Parameters",
    "Refusal",
    "Reparameterization",
    "ReparameterizationAnalyticKL",
    "ReweightedWakeSleep",
    "ReweightedWakeSleepDReG",
    "ScoreFunction",
    "StickingTheLanding",
    "Target",
    "TotalDerivative",
    "Weights",
    "get",
    "names",
    "standard_log_prob",
]
