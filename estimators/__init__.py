"""Monte Carlo gradient estimators: rules that turn log-weights into weights.

Pure mathematics on torch alone: no files, no printing, no global random state.
"""

from __future__ import annotations

import difflib

from .baselines import MovingAverageBaseline, NetworkBaseline, OptimalControlVariate
from .blends import CIWAE, DReGAlpha
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
from .control_variates import LAX, DeltaMethod, HessianControlVariate, ScoreCoefficient
from .debiasing import SUMO, Jackknife, JackknifeDReG
from .discrete import ARM, DisARM, LocalDisARM, MuProp
from .discrete_guides import Bernoulli, Categorical
from .divergences import FDivergence, FDivergenceScore, TailAdaptive
from .dreg_variants import DReGControlVariate, DReGNorm
from .elbo import (
    LeaveOneOut,
    Reparameterization,
    ReparameterizationAnalyticKL,
    ScoreFunction,
    StickingTheLanding,
)
from .enumeration import Enumeration, LocalExpectation
from .gaussian import BonnetPrice, MeasureValued, PriceFirstOrder
from .gdreg import GDReG
from .guides import DiagonalGaussian, FullRankGaussian, standard_log_prob
from .hierarchical import Hierarchical
from .implicit_guides import Beta, Gamma, MixtureOfGaussians
from .multilevel import MultilevelRussianRoulette, MultilevelSingleSample
from .multilevel_phi import MultilevelTVO, UnbiasedReweightedWakeSleep
from .multisample import IWAE, MIWAE, PIWAE, DReG, IWAEStickingTheLanding
from .multisample_score import OVIS, VIMCO, MultiSampleScore, OVISMonteCarlo
from .noise import Antithetic, Sobol, Stratified
from .relaxations import GumbelSoftmax, Rebar, Relax, StraightThrough, StraightThroughGumbel
from .renyi import ChiUpperBound, Renyi, RenyiDReG, RenyiScore
from .sleep import Insomnia, SleepPhi
from .subset_sampling import RaoBlackwellised, UnorderedSet, WithoutReplacement
from .thermodynamic import TVO, EvidenceUpperBound
from .wake_sleep import ReweightedWakeSleep, ReweightedWakeSleepDReG

REGISTRY: dict[str, type[Estimator]] = {
    cls.name: cls
    for cls in (
        ScoreFunction,
        LeaveOneOut,
        MovingAverageBaseline,
        NetworkBaseline,
        OptimalControlVariate,
        Reparameterization,
        ReparameterizationAnalyticKL,
        StickingTheLanding,
        BonnetPrice,
        PriceFirstOrder,
        MeasureValued,
        DeltaMethod,
        ScoreCoefficient,
        HessianControlVariate,
        LAX,
        IWAE,
        IWAEStickingTheLanding,
        DReG,
        DReGNorm,
        DReGControlVariate,
        GDReG,
        MIWAE,
        PIWAE,
        CIWAE,
        DReGAlpha,
        Renyi,
        RenyiDReG,
        RenyiScore,
        ChiUpperBound,
        MultiSampleScore,
        VIMCO,
        OVIS,
        OVISMonteCarlo,
        Jackknife,
        JackknifeDReG,
        SUMO,
        MultilevelRussianRoulette,
        MultilevelSingleSample,
        MultilevelTVO,
        ReweightedWakeSleep,
        ReweightedWakeSleepDReG,
        UnbiasedReweightedWakeSleep,
        SleepPhi,
        Insomnia,
        FDivergence,
        FDivergenceScore,
        TailAdaptive,
        TVO,
        EvidenceUpperBound,
        WithoutReplacement,
        UnorderedSet,
        RaoBlackwellised,
        Enumeration,
        LocalExpectation,
        ARM,
        DisARM,
        LocalDisARM,
        MuProp,
        Rebar,
        Relax,
        GumbelSoftmax,
        StraightThrough,
        StraightThroughGumbel,
        Antithetic,
        Sobol,
        Stratified,
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
    "ARM",
    "BLOCKS",
    "CIWAE",
    "IWAE",
    "LAX",
    "MIWAE",
    "NEEDS",
    "OVIS",
    "PIWAE",
    "REGISTRY",
    "SUMO",
    "TVO",
    "VIMCO",
    "Antithetic",
    "Bernoulli",
    "Beta",
    "Block",
    "BonnetPrice",
    "Categorical",
    "ChiUpperBound",
    "DReG",
    "DReGAlpha",
    "DReGControlVariate",
    "DReGNorm",
    "DeltaMethod",
    "DiagonalGaussian",
    "DisARM",
    "Draw",
    "Enumeration",
    "Estimator",
    "EvidenceUpperBound",
    "FDivergence",
    "FDivergenceScore",
    "FullRankGaussian",
    "GDReG",
    "Gamma",
    "Gradient",
    "Guide",
    "GumbelSoftmax",
    "HessianControlVariate",
    "Hierarchical",
    "IWAEStickingTheLanding",
    "Insomnia",
    "Jackknife",
    "JackknifeDReG",
    "LatentModel",
    "LeaveOneOut",
    "LocalDisARM",
    "LocalExpectation",
    "MeasureValued",
    "MixtureOfGaussians",
    "MovingAverageBaseline",
    "MuProp",
    "MultiSampleScore",
    "MultilevelRussianRoulette",
    "MultilevelSingleSample",
    "MultilevelTVO",
    "NetworkBaseline",
    "OVISMonteCarlo",
    "OptimalControlVariate",
    "Parameters",
    "PriceFirstOrder",
    "RaoBlackwellised",
    "Rebar",
    "Refusal",
    "Relax",
    "Renyi",
    "RenyiDReG",
    "RenyiScore",
    "Reparameterization",
    "ReparameterizationAnalyticKL",
    "ReweightedWakeSleep",
    "ReweightedWakeSleepDReG",
    "ScoreCoefficient",
    "ScoreFunction",
    "SleepPhi",
    "Sobol",
    "StickingTheLanding",
    "StraightThrough",
    "StraightThroughGumbel",
    "Stratified",
    "TailAdaptive",
    "Target",
    "TotalDerivative",
    "UnbiasedReweightedWakeSleep",
    "UnorderedSet",
    "Weights",
    "WithoutReplacement",
    "get",
    "names",
    "standard_log_prob",
]
