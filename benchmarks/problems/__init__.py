"""Problems: models with data, parameters, and what is exactly known of their gradients. One file per family."""

from __future__ import annotations

from .banana import Banana
from .belief_net import SigmoidBeliefNet
from .belief_net_vae import BeliefNetVAE
from .categorical import CategoricalMixture
from .conjugate import BetaBernoulli, GammaPoisson
from .costs import ExpectedCost
from .digits import DigitsVAE
from .gaussian import Gaussian1D, LinearGaussian
from .gaussian_dd import GaussianFullRank, GaussianMeanField
from .hierarchical_vae import HierarchicalVAE
from .hierarchy import TwoLayerGaussian
from .mixture_guide import GaussianMixtureGuide
from .pixel_vae import PixelVAE
from .problem import Problem, Reference
from .pyro_problem import PyroProblem
from .rainforth import Rainforth
from .rich_guides import RichGuideVAE

REGISTRY: dict[str, type[Problem]] = {
    cls.name: cls
    for cls in (
        Gaussian1D,
        LinearGaussian,
        GaussianMeanField,
        GaussianFullRank,
        Rainforth,
        TwoLayerGaussian,
        Banana,
        ExpectedCost,
        GammaPoisson,
        BetaBernoulli,
        GaussianMixtureGuide,
        SigmoidBeliefNet,
        CategoricalMixture,
        DigitsVAE,
        HierarchicalVAE,
        BeliefNetVAE,
        PixelVAE,
        RichGuideVAE,
        PyroProblem,
    )
}

__all__ = [
    "REGISTRY",
    "Banana",
    "BeliefNetVAE",
    "BetaBernoulli",
    "CategoricalMixture",
    "DigitsVAE",
    "ExpectedCost",
    "GammaPoisson",
    "Gaussian1D",
    "GaussianFullRank",
    "GaussianMeanField",
    "GaussianMixtureGuide",
    "HierarchicalVAE",
    "LinearGaussian",
    "PixelVAE",
    "Problem",
    "PyroProblem",
    "Rainforth",
    "Reference",
    "RichGuideVAE",
    "SigmoidBeliefNet",
    "TwoLayerGaussian",
]
